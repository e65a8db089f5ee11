"""Loads an exported pipeline folder, whose denoiser is a packed network.

The denoiser's sub-folder holds a packed checkpoint, in the layout of diffusers or, in folders that
earlier versions wrote, beside its ``config.json``. The other components are those of the base
model. Loading needs this folder and nothing else. ``DiffusionPipeline.from_pretrained`` loads the
same pipeline from a folder in the layout of diffusers; here every file is checked before, and what
is damaged is named in one line.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantarena.bench.documents import clean_text
from quantarena.bench.errors import BrokenModel, first_line
from quantarena.bench.files import finish_replacing
from quantarena.bench.ship.packed_network import as_diffusers_model
from quantarena.bench.ship.pipeline_clock import announce_in_pipelines
from quantarena.bench.workloads import registry
from quantarena.bench.workloads.pipeline import LoadedPipeline, variant_of
from quantarena.bench.workloads.pipeline_hash import pipeline_sha256
from quantarena.bench.workloads.row_lists import stack_rows
from quantarena.methods.core.json_files import read_object
from quantarena.methods.core.packed.checkpoint import load_packed
from quantarena.methods.core.packed.diffusers_layout import (
    CONFIG,
    METHOD,
    description_file,
    read_description,
)
from quantarena.methods.core.packed.files import DOCUMENT, Document
from quantarena.methods.core.packed.pack import PackedModel

INDEX = "model_index.json"


@dataclass(frozen=True, slots=True)
class ExportedPipeline:
    """A loaded pipeline folder.

    Attributes:
        loaded: the pipeline with the packed denoiser in its slot.
        packed: the packed network.
        meta: how the model was made, as ``save_pipeline`` stored it.
    """

    loaded: LoadedPipeline
    packed: PackedModel
    meta: dict[str, Any]


def load_pipeline(folder: str | Path) -> Any:
    """Load an exported folder as a diffusers pipeline whose denoiser runs on packed kernels.

    Example:
        >>> from quantarena import load_pipeline  # doctest: +SKIP
        >>> pipe = load_pipeline("exported")  # doctest: +SKIP
        >>> pipe("a red apple").images[0]  # doctest: +SKIP

    Raises:
        BrokenModel: the folder is no export, or it is damaged.
    """
    return open_exported(folder).loaded.pipe


def open_exported(folder: str | Path) -> ExportedPipeline:
    """Load an exported folder together with what is stored about it.

    Raises:
        BrokenModel: as ``load_pipeline``.
    """
    folder = Path(folder).expanduser()
    finish_replacing(folder)
    slot, kind, file = _slot(folder)
    sha256 = pipeline_sha256(folder)
    packed = load_packed(folder / slot, _skeleton(folder / slot, kind))
    document = read_description(file)
    meta = _meta(document, file)
    as_diffusers_model(packed, document if file.name == CONFIG else {"meta": meta})
    announce_in_pipelines()
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
    except Exception as error:  # each component raises errors of its own kind
        raise BrokenModel(
            f"{folder} does not load as a diffusers pipeline: {first_line(error)}"
        ) from None
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    _require_finite(pipe.components, folder)
    return ExportedPipeline(LoadedPipeline(pipe, slot, sha256), packed, meta)


def workload_of(exported: ExportedPipeline, folder: Path) -> registry.WorkloadInfo:
    """The workload of an exported folder, which draws with the noise of its base model."""
    info = registry.resolve(str(folder.resolve()))
    base = str(exported.meta.get("base_model", info.title))
    return replace(info, name=base, path=Path(base))  # both names enter the seed of the noise


def _meta(document: Document, file: Path) -> dict[str, Any]:
    """How the model was made, from its description; the name of its base decides its noise."""
    meta = document.get("meta")
    if not isinstance(meta, dict):
        raise BrokenModel(f"{file} does not say how the model was made: it has no meta")
    base = meta.get("base_model", "")
    if not isinstance(base, str) or "\0" in base or base != clean_text(base):
        raise BrokenModel(f"{file} has no text as the name of its base model")
    return meta


def _require_finite(components: Mapping[str, Any], folder: Path) -> None:
    """Refuse weights that are NaN or infinite: every picture of theirs would be garbage.

    Raises:
        BrokenModel: naming the component and the tensor.
    """
    for part, component in components.items():
        if not isinstance(component, nn.Module):
            continue
        for name, tensor in (*component.named_parameters(), *component.named_buffers()):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise BrokenModel(f"{folder / part}: {name} holds NaN or infinity; export it again")


def _skeleton(folder: Path, kind: str) -> nn.Module:
    """The network that a configuration describes, its parameters without memory."""
    import diffusers
    from accelerate import init_empty_weights

    maker = getattr(diffusers, kind, None)
    if maker is None or not hasattr(maker, "load_config"):
        raise BrokenModel(f"{folder} wants a {kind}, which this diffusers does not have")
    try:
        read_object(folder / "config.json", constants=True)  # diffusers would wait for a pipe
        config = maker.load_config(str(folder), local_files_only=True)
        with init_empty_weights(include_buffers=False):
            network = maker.from_config(config)
    except BrokenModel:
        raise
    except Exception as error:  # a configuration of another version may fail in any way
        raise BrokenModel(f"{folder} does not describe a {kind}: {first_line(error)}") from None
    if not isinstance(network, nn.Module):
        raise BrokenModel(f"{folder} describes a {kind}, which is no network")
    stack_rows(network)
    return network


def _slot(folder: Path) -> tuple[str, str, Path]:
    """The name of the packed component, its class, and the file that describes it."""
    index = read_index(folder)
    for name, value in index.items():
        # of the index, only names of components can be those of folders: they may be of any length
        known = isinstance(value, list) and len(value) == 2 and os.path.isdir(folder / name)
        file = description_file(folder / name) if known else None
        if file is None:
            continue
        if value[0] != "diffusers" or not isinstance(value[1], str):
            raise BrokenModel(f"{folder / INDEX}: {name} must be a network of diffusers")
        return name, value[1], file
    raise BrokenModel(
        f"{folder} holds no quantized model: no component of it has a {DOCUMENT}, or a {CONFIG} "
        f"with the quant_method {METHOD}"
    )


def read_index(folder: Path) -> dict[str, Any]:
    """The content of a pipeline folder's ``model_index.json``.

    Raises:
        BrokenModel: there is none, or it cannot be read.
    """
    try:
        return read_object(folder / INDEX)
    except FileNotFoundError:
        raise BrokenModel(f"{folder} is no diffusers pipeline: it has no {INDEX}") from None
