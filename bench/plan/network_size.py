"""How large a workload's network is, by its files alone: what an estimate of time needs. No torch.

One multiplication for each weight and each place that the weight is applied at. In a U-Net the
weights of a level grow with its squared width, and its places with its resolution. This comes
within a third of the counted multiplications of Stable Diffusion 1.5's U-Net.
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from quantarena.bench.errors import BrokenModel
from quantarena.bench.workloads.hub import USUAL_SLOTS
from quantarena.methods.core.json_files import read_object

_WEIGHTS, _CALL = 4.3e6, 220e6
"""Weights and multiplications for one image of emoji-t2i's network, guidance included."""
_HEADER = 100_000_000
"""Longest header of a weight file in bytes, as the format's own reader has it."""
_DECODERS = ("vae", "vqvae", "movq")
_CONFIG = "config.json"
_DEFAULT_STEPS = 20


@dataclass(frozen=True, slots=True)
class Size:
    """What the time of a workload grows with.

    Attributes:
        weights: weights of the network, relative to the models that ship. At least 1: on smaller
            ones time goes into other things.
        call: work of one call for one image, likewise.
        steps: sampler steps.
    """

    weights: float = 1.0
    call: float = 1.0
    steps: int = _DEFAULT_STEPS


def network_size(folder: Path, resolution: int, guidance: float, steps: int) -> Size:
    """The size of the network of a pipeline folder; as the models that ship if files do not tell.

    Args:
        folder: the pipeline folder.
        resolution: side of its images in pixels; 0 if unknown.
        guidance: scale of classifier-free guidance, which doubles the rows if above 1.
        steps: sampler steps.
    """
    parts = [folder / name for name in USUAL_SLOTS if (folder / name / _CONFIG).is_file()]
    if not parts:
        return Size(steps=steps)
    try:
        config = read_object(parts[0] / _CONFIG, constants=True)
        weights = _weights(parts[0])
        places = _places(config, _side(folder, config, resolution))
    except (BrokenModel, OSError, ValueError, TypeError, KeyError):
        return Size(steps=steps)  # an estimate is not the place to refuse a model
    call = weights * places * (2 if guidance > 1 else 1)
    return Size(max(1.0, weights / _WEIGHTS), max(1.0, call / _CALL), steps)


def _weights(part: Path) -> int:
    """Numbers in the weight files of a network; other variants of the same weights count once."""
    files = [file for file in part.iterdir() if file.suffix == ".safetensors"]
    files = [file for file in files if "." not in file.stem] or files
    if files:
        return sum(_numbers(file) for file in files)
    plain = [file for file in part.iterdir() if file.suffix == ".bin"]
    return sum(file.stat().st_size for file in plain) // 4


def _numbers(file: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _HEADER:
            raise ValueError(f"{file} is no safetensors file")
        header = json.loads(stream.read(length))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _side(folder: Path, config: dict[str, Any], resolution: int) -> float:
    """Side of what the network draws: pixels, or latents where a decoder makes pixels of them."""
    if not resolution:
        told = config["sample_size"]
        return float(told[0] if isinstance(told, list) else told)
    for name in _DECODERS:
        if (folder / name / _CONFIG).is_file():
            found = read_object(folder / name / _CONFIG, constants=True)
            widths = found.get("block_out_channels") or found["encoder_block_out_channels"]
            return float(resolution) / 2.0 ** (len(widths) - 1)
    return float(resolution)


def _places(config: dict[str, Any], side: float) -> float:
    """Mean number of places that a weight is applied at."""
    widths = config.get("block_out_channels")
    if not widths:
        return max(1.0, side / int(config.get("patch_size") or 1)) ** 2
    shares = [float(width) ** 2 for width in widths]
    places = [max(1.0, side / 2**level) ** 2 for level in range(len(shares))]
    total: float = sum(share * count for share, count in zip(shares, places, strict=True))
    return total / sum(shares)
