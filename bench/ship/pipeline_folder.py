"""A packed network as an ordinary diffusers pipeline folder, written and loaded back.

The denoiser's sub-folder holds its ``config.json`` and a packed checkpoint instead of weights; the
other components are the files of the original. Loading needs this folder and nothing else.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantarena.bench.errors import BrokenModel, UserError, first_line
from quantarena.bench.files import make_shareable
from quantarena.bench.ship.model_card import card
from quantarena.bench.stages.ground import Workspace
from quantarena.bench.workloads.pipeline import (
    MANIFEST,
    LoadedPipeline,
    pipeline_sha256,
    variant_of,
)
from quantarena.bench.workloads.registry import SETTINGS, WorkloadInfo
from quantarena.methods.core.packed.checkpoint import load_packed, save_packed
from quantarena.methods.core.packed.files import DOCUMENT, file_sha256
from quantarena.methods.core.packed.pack import PackedModel
from quantarena.methods.core.record.announce import attach

INDEX = "model_index.json"
MOST_PROMPTS = 64
"""Conditions kept with an exported model, to draw from when none are given."""


@dataclass(frozen=True, slots=True)
class ExportedPipeline:
    """A loaded folder.

    Attributes:
        loaded: the pipeline with the packed denoiser in its slot.
        packed: the packed network.
        meta: what ``save_pipeline`` was told.
    """

    loaded: LoadedPipeline
    packed: PackedModel
    meta: dict[str, Any]


def save_pipeline(
    workspace: Workspace,
    packed: PackedModel,
    folder: Path,
    meta: Mapping[str, Any],
    *,
    replace: bool = False,
) -> dict[str, Any]:
    """Write a pipeline folder; it appears whole or not at all.

    Args:
        workspace: the workload that was quantized.
        packed: its packed denoiser.
        folder: must not exist, or be empty.
        meta: how it was made; goes into ``packed.json`` and the model card.
        replace: write over an earlier export, and over nothing else.

    Returns:
        The content of ``packed.json``.

    Raises:
        UserError: the folder is taken or cannot be written.
    """
    check_target(folder, replace=replace)
    folder = folder.expanduser().resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            work.chmod(0o755)
            document = _fill(work, workspace, packed, meta)
            if folder.is_dir():
                shutil.rmtree(folder)
            os.replace(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    return document


def check_target(folder: Path, *, replace: bool) -> None:
    """See that a folder may be written, before anything expensive.

    Raises:
        UserError: it holds something else, or an earlier export that is not to be replaced.
    """
    folder = folder.expanduser()
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another place with -o")
    if not any(folder.iterdir()):
        return
    if not any(folder.glob(f"*/{DOCUMENT}")):
        raise UserError(f"{folder} is not empty: choose another place with -o")
    if not replace:
        raise UserError(f"{folder} holds a quantized model: choose another place, or use --force")


def load_pipeline(folder: str | Path) -> Any:
    """The diffusers pipeline of an exported folder, its denoiser on packed kernels.

    Example:
        >>> from quantarena import load_pipeline  # doctest: +SKIP
        >>> pipe = load_pipeline("exported")  # doctest: +SKIP
        >>> pipe("a red apple").images[0]  # doctest: +SKIP

    Raises:
        BrokenModel: the folder is no export, or damaged; one line.
    """
    return open_exported(folder).loaded.pipe


def open_exported(folder: str | Path) -> ExportedPipeline:
    """Load an exported folder with all that is known about it.

    Raises:
        BrokenModel: as ``load_pipeline``.
    """
    folder = Path(folder).expanduser()
    slot, kind = _slot(folder)
    sha256 = pipeline_sha256(folder)
    packed = load_packed(folder / slot, _skeleton(folder / slot, kind))
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logger in (diffusers_logging, transformers_logging):
        logger.disable_progress_bar()
    try:
        pipe = DiffusionPipeline.from_pretrained(
            str(folder),
            dtype=torch.float32,
            local_files_only=True,
            variant=variant_of(folder),
            **{slot: packed.module},
        )
    except Exception as error:  # every component raises its own kinds
        raise BrokenModel(
            f"{folder} does not load as a diffusers pipeline: {first_line(error)}"
        ) from None
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    attach(pipe.scheduler, packed.clock)  # its steps say which sampler call the network is at
    document = json.loads((folder / slot / DOCUMENT).read_text())
    return ExportedPipeline(LoadedPipeline(pipe, slot, sha256), packed, dict(document["meta"]))


def _skeleton(folder: Path, kind: str) -> nn.Module:
    """The network that a configuration describes; its parameters take no memory."""
    import diffusers
    from accelerate import init_empty_weights

    maker = getattr(diffusers, kind, None)
    if maker is None or not hasattr(maker, "load_config"):
        raise BrokenModel(f"{folder} wants a {kind}, which this diffusers does not have")
    try:
        config = maker.load_config(str(folder), local_files_only=True)
        with init_empty_weights(include_buffers=False):
            network = maker.from_config(config)
    except Exception as error:  # whatever a configuration of another version leads to
        raise BrokenModel(f"{folder} does not describe a {kind}: {first_line(error)}") from None
    if not isinstance(network, nn.Module):
        raise BrokenModel(f"{folder} describes a {kind}, which is no network")
    return network


def _slot(folder: Path) -> tuple[str, str]:
    """The component that is packed, and its class."""
    index = _index(folder)
    for name, value in index.items():
        if (folder / name / DOCUMENT).is_file() and isinstance(value, list) and len(value) == 2:
            if value[0] != "diffusers":
                raise BrokenModel(f"{folder / INDEX}: {name} must be a network of diffusers")
            return name, str(value[1])
    raise BrokenModel(f"{folder} holds no quantized model: no component of it has a {DOCUMENT}")


def _index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX
    try:
        index = json.loads(file.read_text())
    except FileNotFoundError:
        raise BrokenModel(f"{folder} is no diffusers pipeline: it has no {INDEX}") from None
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{file} cannot be read: {error}") from None
    if not isinstance(index, dict):
        raise BrokenModel(f"{file} must hold one JSON object")
    return index


def _fill(
    work: Path, workspace: Workspace, packed: PackedModel, meta: Mapping[str, Any]
) -> dict[str, Any]:
    source, slot = workspace.info.path, workspace.loaded.slot
    index = _index(source)
    shutil.copyfile(source / INDEX, work / INDEX)
    for name in index:
        if name != slot and (source / name).is_dir():
            shutil.copytree(source / name, work / name, ignore=_duplicates)
    if workspace.info.sampler:  # not the one in the source folder
        scheduler = workspace.loaded.pipe.scheduler
        scheduler.save_pretrained(work / "scheduler")
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        (work / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (work / slot).mkdir()
    shutil.copyfile(source / slot / "config.json", work / slot / "config.json")
    document = save_packed(packed, work / slot, meta=meta)
    (work / SETTINGS).write_text(
        json.dumps(_settings(workspace.info, workspace.steps), indent=1) + "\n"
    )
    (work / "README.md").write_text(
        card(document, workspace.info, type(workspace.loaded.pipe).__name__)
    )
    files = sorted(f for f in work.rglob("*") if f.is_file() and f.name != "README.md")
    manifest = {str(f.relative_to(work)): {"sha256": file_sha256(f)} for f in files}
    (work / MANIFEST).write_text(json.dumps({"files": manifest}, indent=1) + "\n")
    for file in files:
        make_shareable(file)
    return document


def _duplicates(folder: str, names: list[str]) -> set[str]:
    """Weights that lie beside the same ones in safetensors."""
    if not any(name.endswith(".safetensors") for name in names):
        return set()
    return {name for name in names if name.endswith((".bin", ".msgpack", ".h5", ".ckpt"))}


def _settings(info: WorkloadInfo, steps: int) -> dict[str, Any]:
    return {
        "title": info.title,
        "steps": steps,
        "guidance": info.guidance,
        "eta": info.eta,
        "resolution": info.resolution,
        "licence": info.licence,
        "conditions": {"kind": info.conditions, "values": list(info.prompts[:MOST_PROMPTS])},
    }
