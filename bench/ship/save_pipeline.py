"""Writes a packed network as a diffusers pipeline folder that ``from_pretrained`` loads."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantarena.bench.errors import BrokenModel, UserError
from quantarena.bench.files import draft_of, finish_replacing, make_shareable, put_in_place
from quantarena.bench.ship.model_card import card
from quantarena.bench.ship.packed_network import as_diffusers_model
from quantarena.bench.ship.pipeline_folder import INDEX, read_index
from quantarena.bench.stages.workspace import Workspace
from quantarena.bench.workloads.inputs.arguments import CALL, values
from quantarena.bench.workloads.pipeline_hash import MANIFEST
from quantarena.bench.workloads.registry import SETTINGS, WorkloadInfo
from quantarena.methods.core.packed.diffusers_layout import (
    CONFIG,
    WEIGHTS,
    packed_folders,
    read_entry,
)
from quantarena.methods.core.packed.files import file_sha256
from quantarena.methods.core.packed.pack import PackedModel

MOST_PROMPTS = 64
"""Number of prompts or classes stored with an exported model, to draw from by default."""
MOST_PICTURES = 8
"""Number of condition images of each kind that are copied into an export, likewise."""
PICTURES = "condition_images"
"""The folder that they are copied to."""
LISTS = ("layers", "tensors")
"""Entries of a description that are long and only a program reads."""
ONE_FILE = 1 << 62
"""Bytes above which weights are cut into several files: never."""


def save_pipeline(
    workspace: Workspace,
    packed: PackedModel,
    folder: Path,
    meta: Mapping[str, Any],
    *,
    replace: bool = False,
) -> dict[str, Any]:
    """Write a pipeline folder, whole or not at all; an earlier export stays until then.

    Args:
        workspace: the workload that was quantized.
        packed: its packed denoiser.
        folder: the target, which must not exist or be empty.
        meta: how the model was made; stored in the ``config.json`` of the denoiser and in the
            model card.
        replace: whether an earlier export may be overwritten.

    Returns:
        The description of the packed network, and the size of its file beside the other bytes.

    Raises:
        UserError: the folder is taken or cannot be written.
    """
    check_target(folder, replace=replace)
    folder = folder.expanduser().resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with draft_of(folder) as work:
            document = _fill(work, workspace, packed, meta)
            put_in_place(work, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    return document


def check_target(folder: Path, *, replace: bool) -> None:
    """Check that a folder may be written, before any expensive work.

    Raises:
        UserError: it holds something else, or an earlier export and ``replace`` is False.
    """
    folder = folder.expanduser()
    finish_replacing(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another place with -o")
    if not any(folder.iterdir()):
        return
    if not _is_export(folder):
        raise UserError(f"{folder} is not empty: choose another place with -o")
    if not replace:
        raise UserError(f"{folder} holds a quantized model: choose another place, or use --force")


def _fill(
    work: Path, workspace: Workspace, packed: PackedModel, meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the files of a pipeline folder into ``work``; returns the network's description."""
    source, slot = workspace.info.path, workspace.loaded.slot
    index = read_index(source)
    shutil.copyfile(source / INDEX, work / INDEX)
    for name in index:
        if name != slot and (source / name).is_dir():
            shutil.copytree(source / name, work / name, ignore=_duplicates)
    if workspace.info.sampler or workspace.info.sampler_options:  # not the one in the source folder
        scheduler = workspace.loaded.pipe.scheduler
        scheduler.save_pretrained(work / "scheduler")
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        (work / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    network: Any = as_diffusers_model(packed, {"meta": meta})
    network.save_pretrained(work / slot, max_shard_size=ONE_FILE)
    document = read_entry(work / slot / CONFIG)
    document["bytes"]["file"] = (work / slot / f"{WEIGHTS}.safetensors").stat().st_size
    settings = _settings(workspace.info, workspace.steps) | _copied(workspace.info, work)
    (work / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")
    (work / "README.md").write_text(
        card(document, workspace.info, type(workspace.loaded.pipe).__name__)
    )
    files = sorted(f for f in work.rglob("*") if f.is_file() and f.name != "README.md")
    manifest = {str(f.relative_to(work)): {"sha256": file_sha256(f)} for f in files}
    (work / MANIFEST).write_text(json.dumps({"files": manifest}, indent=1) + "\n")
    for file in files:
        make_shareable(file)
    return document


def _is_export(folder: Path) -> bool:
    try:
        return bool(packed_folders(folder))
    except BrokenModel:  # somebody's damaged file is something else than an export
        return False


def _duplicates(folder: str, names: list[str]) -> set[str]:
    """Files that repeat the weights of a folder in another format than safetensors."""
    if not any(name.endswith(".safetensors") for name in names):
        return set()
    return {name for name in names if name.endswith((".bin", ".msgpack", ".h5", ".ckpt"))}


def _copied(info: WorkloadInfo, work: Path) -> dict[str, str]:
    """Copy the first condition images; returns the settings that name their folders."""
    for each in info.inputs:
        place = work / PICTURES / each.setting
        place.mkdir(parents=True)
        for number, file in enumerate(each.files[:MOST_PICTURES]):
            shutil.copyfile(file, place / f"{number:04d}{file.suffix.lower()}")
    return {each.setting: f"{PICTURES}/{each.setting}" for each in info.inputs}


def _settings(info: WorkloadInfo, steps: int) -> dict[str, Any]:
    return {
        "title": info.title,
        "steps": steps,
        "guidance": info.guidance,
        "eta": info.eta,
        "resolution": info.resolution,
        "licence": info.licence,
        "conditions": {"kind": info.conditions, "values": list(info.prompts[:MOST_PROMPTS])},
        **{f"{CALL}{name}": value for name, value in values(info.call).items()},
    }
