"""Opens what is under test: an export of ours, a pipeline that diffusers loads, or a GGUF file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from quantarena.bench.content import file_sha256
from quantarena.bench.errors import BrokenModel, Unsupported, UserError, first_line
from quantarena.bench.ship.pipeline_folder import open_exported, read_index
from quantarena.bench.workloads.pipeline import LoadedPipeline, find_slot, variant_of
from quantarena.bench.workloads.pipeline_hash import pipeline_sha256
from quantarena.methods.core.network import Network
from quantarena.methods.core.packed.diffusers_layout import CONFIG, packed_folders
from quantarena.methods.rival import Prepared
from quantarena.methods.rivals.folder import held_network
from quantarena.methods.rivals.held import network_bytes
from quantarena.methods.rivals.saved import quant_method, require_libraries


@dataclass(frozen=True, slots=True)
class Tested:
    """The denoiser of a folder.

    Attributes:
        network: ready to draw.
        slot: name of the component.
        sha256: hash of the folder's weights and settings.
        held_bytes: bytes of its weights and buffers as memory holds them.
        base_sha256: hash of the model that it was made from; empty where nobody wrote it down.
    """

    network: Network
    slot: str
    sha256: str
    held_bytes: int
    base_sha256: str = ""


def open_tested(folder: Path) -> Tested:
    """Open a folder's denoiser.

    Raises:
        BrokenModel: the folder is no pipeline, or it is damaged.
        UserError: the library that wrote its weights is not installed.
    """
    read_index(folder)
    _require_libraries(folder)
    if packed_folders(folder):
        found = open_exported(folder)
        loaded = found.loaded
        base = str(found.meta.get("base_sha256", ""))
        size = found.packed.bytes()
        return Tested(found.packed, loaded.slot, loaded.sha256, size, base)
    return _diffusers(folder)


def open_gguf(file: Path, full: LoadedPipeline) -> Tested:
    """The weights of a GGUF file in a network like full precision's.

    Raises:
        BrokenModel: they do not fit it, or the file is damaged.
        UserError: the library that reads it is not installed.
    """
    _require_libraries(file)
    prepared = held_network(full.denoiser, file, ())
    return Tested(prepared, full.slot, file_sha256(file), prepared.packed_bytes)


def _require_libraries(path: Path) -> None:
    try:
        require_libraries(path)
    except Unsupported as error:
        raise UserError(str(error)) from None


def _diffusers(folder: Path) -> Tested:
    """A folder without packed weights, as diffusers loads it, with the dtypes that it holds."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    try:
        pipe = DiffusionPipeline.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True, variant=variant_of(folder)
        )
    except Exception as error:  # each component, and each quantizer's library, has its own errors
        raise BrokenModel(
            f"{folder} does not load as a diffusers pipeline: {first_line(error)}"
        ) from None
    slot = find_slot(pipe, str(folder))
    network: nn.Module = getattr(pipe, slot)
    network.eval().requires_grad_(False)
    name = quant_method(folder / slot / CONFIG) or "fp32 weights"
    prepared = Prepared(network, f"diffusers, {name}", network_bytes(network))
    return Tested(prepared, slot, pipeline_sha256(folder), prepared.packed_bytes)
