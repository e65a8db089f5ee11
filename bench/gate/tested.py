"""Opens the folder under test: an export of ours, or a pipeline that diffusers itself loads."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from quantarena.bench.errors import BrokenModel, first_line
from quantarena.bench.ship.pipeline_folder import open_exported, read_index
from quantarena.bench.workloads.pipeline import find_slot, variant_of
from quantarena.bench.workloads.pipeline_hash import pipeline_sha256
from quantarena.methods.core.json_files import read_object
from quantarena.methods.core.network import Network
from quantarena.methods.core.packed.diffusers_layout import packed_folders
from quantarena.methods.rival import Prepared
from quantarena.methods.rivals.held import network_bytes


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
    """
    read_index(folder)
    if packed_folders(folder):
        found = open_exported(folder)
        loaded = found.loaded
        base = str(found.meta.get("base_sha256", ""))
        size = found.packed.bytes()
        return Tested(found.packed, loaded.slot, loaded.sha256, size, base)
    return _diffusers(folder)


def _diffusers(folder: Path) -> Tested:
    """A folder without packed weights, as diffusers loads it, with the dtypes that it holds."""
    from diffusers import DiffusionPipeline

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
    config = read_object(folder / slot / "config.json", constants=True)
    kind = config.get("quantization_config")
    name = str(kind.get("quant_method", "quantized")) if isinstance(kind, dict) else "fp32 weights"
    prepared = Prepared(network, f"diffusers, {name}", network_bytes(network))
    return Tested(prepared, slot, pipeline_sha256(folder), prepared.packed_bytes)
