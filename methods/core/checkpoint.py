"""The packed checkpoint: a folder with ``packed.safetensors`` and ``packed.json``.

The tensors are canonical, not those of any kernel: code streams of ``formats.pack_codes``, scales,
zero points, biases, and whatever of the network stayed in floating point. The JSON holds the
description of every layer and the sha256 of the tensors; the tensors hold the sha256 of the
description, so that neither can be edited without the other. Loading needs the network's structure
only, no floating weights of quantized layers, and gives the same outputs bit for bit.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from quantarena.methods.core.checkpoint_files import (
    DIGEST,
    DOCUMENT,
    FORMAT,
    TENSORS,
    VERSION,
    Document,
    Tensors,
    file_sha256,
    layers_sha256,
    read,
    text,
)
from quantarena.methods.core.errors import BrokenModel, QuantArenaError
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.kernels.packed import PackedLayer
from quantarena.methods.core.kernels.split import SplitPackedLayer
from quantarena.methods.core.model import place
from quantarena.methods.core.pack import PackedModel, channels_last

OVERHEAD_LIMIT = 1.1
"""Largest accepted ratio of the stored tensors to what codes, scales and floats need."""

_STORED = {"act_zero": torch.uint8, "weight_zero": torch.int16}  # int32 in memory


def save_packed(packed: PackedModel, folder: Path, *, meta: Mapping[str, Any]) -> Document:
    """Write a checkpoint.

    Args:
        packed: the network; at least one layer of it is quantized.
        folder: made when missing.
        meta: what the reader should know: method, bits, policy, seed, base model. JSON types.

    Returns:
        The content of ``packed.json``.

    Raises:
        QuantArenaError: nothing is quantized, or a layer is of an unknown kind.
    """
    if not packed.layers:
        raise QuantArenaError("nothing is quantized: there is no packed checkpoint to write")
    layers = {name: _describe(name, layer) for name, layer in packed.layers.items()}
    tensors: Tensors = {}
    for name, value in packed.module.state_dict().items():
        leaf = name.rpartition(".")[2]
        if _owner(name, layers):
            if leaf == "weight_zero" and not value.any():
                continue  # symmetric
            value = value.to(_STORED.get(leaf, value.dtype))
        tensors[name] = value.detach().cpu().contiguous().clone()
    sizes = _sizes(packed, tensors, layers)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / TENSORS
    save_file(tensors, file, {DIGEST: layers_sha256(layers)})  # one entry: a set order
    document: Document = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": file_sha256(file),
        "bytes": {**sizes, "file": file.stat().st_size},
        "meta": dict(meta),
        "layers": layers,
    }
    (folder / DOCUMENT).write_text(json.dumps(document, separators=(",", ":")) + "\n")
    return document


def load_packed(folder: Path, skeleton: nn.Module) -> PackedModel:
    """Rebuild a network.

    Args:
        folder: what ``save_packed`` wrote.
        skeleton: the network as its configuration builds it, with any weights or on the meta
            device; it is changed in place and becomes the result's module.

    Raises:
        BrokenModel: files are missing, truncated, edited, of a future version, or of another
            network; one line.
    """
    document, tensors = read(folder)
    file = folder / DOCUMENT
    layers: Mapping[str, Any] = document["layers"]
    floats = {n: t for n, t in tensors.items() if not _owner(n, layers)}
    try:
        made = {name: _build(name, layer, tensors) for name, layer in layers.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BrokenModel(f"{file} does not describe its tensors: {text(error)}") from None
    for name, layer in layers.items():
        _check_place(file, name, layer, skeleton)
    try:
        found = skeleton.load_state_dict(floats, strict=False, assign=True)
    except RuntimeError as error:
        raise BrokenModel(
            f"{folder / TENSORS} does not fit the network: {str(error).splitlines()[-1]}"
        ) from None
    lost = [name for name in found.missing_keys if not _owner(name, layers)]
    if lost:
        raise BrokenModel(f"{file} lacks {_few(lost)} of the network")
    if found.unexpected_keys:
        raise BrokenModel(f"{file} has {_few(found.unexpected_keys)}, the network has not")
    for name, module in made.items():
        place(skeleton, name, module)
    channels_last(skeleton.eval().requires_grad_(False))
    result = PackedModel(skeleton, made, "packed")
    native = all(part.backend == "packed" for name in made for part in result.parts(name))
    return PackedModel(skeleton, made, "packed" if native else "reference")


def _describe(name: str, layer: nn.Module) -> Document:
    if isinstance(layer, PackedLayer):
        return {"parts": [layer.metadata]}
    if isinstance(layer, SplitPackedLayer):
        parts = [part.metadata for part in layer.parts if isinstance(part, PackedLayer)]
        return {"parts": parts, "splits": [list(edge) for edge in layer.edges]}
    raise QuantArenaError(f"{name} is a {type(layer).__name__}, which no packed checkpoint holds")


def _build(name: str, layer: Mapping[str, Any], tensors: Tensors) -> nn.Module:
    metas, splits = layer["parts"], layer.get("splits")
    parts = []
    for index, meta in enumerate(metas):
        prefix = f"{name}." if splits is None else f"{name}.parts.{index}."
        named = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
        if splits is None and any("." in n for n in named):
            raise ValueError(f"{name} has parts and no splits")
        if "codes" not in named:
            raise ValueError(f"{name} has no codes")
        rows = int(meta["weight_shape"][0])
        named.setdefault("weight_zero", torch.zeros(rows, dtype=torch.int32))
        named |= {n: named[n].to(torch.int32) for n in _STORED if n in named}
        if (meta["has_bias"], meta["has_in_mult"]) != ("bias" in named, "in_mult" in named):
            raise ValueError(f"{name} has not the bias or multipliers that it should have")
        parts.append(IntegerLayer.from_tensors(meta, named))
    if splits is None:
        (single,) = parts
        return PackedLayer(single)
    edges = [(int(start), int(stop)) for start, stop in splits]
    if [b - a for a, b in edges] != [int(m["weight_shape"][1]) for m in metas]:
        raise ValueError(f"{name} has splits {edges} that do not fit its parts")
    return SplitPackedLayer(parts)


def _check_place(file: Path, name: str, layer: Mapping[str, Any], skeleton: nn.Module) -> None:
    try:
        original = skeleton.get_submodule(name)
    except AttributeError:
        raise BrokenModel(f"{file} has a layer {name}, the network has none") from None
    metas = layer["parts"]
    shape = list(metas[0]["weight_shape"])
    shape[1] = sum(int(meta["weight_shape"][1]) for meta in metas)
    expected = list(getattr(original, "weight", torch.empty(0)).shape)
    if not isinstance(original, nn.Conv2d | nn.Linear) or shape != expected:
        raise BrokenModel(f"{file} has {name} in shape {shape}, the network's is {expected}")


def _owner(name: str, layers: Mapping[str, Any]) -> bool:
    """Whether a tensor's name lies inside a quantized layer."""
    steps = name.split(".")
    return any(".".join(steps[:n]) in layers for n in range(1, len(steps)))


def _sizes(packed: PackedModel, tensors: Tensors, layers: Mapping[str, Any]) -> dict[str, int]:
    """Bytes by purpose; what is stored must be what the bits promise."""
    sizes = {"codes": 0, "scales": 0, "floating": 0}
    for name, value in tensors.items():
        codes = "codes" if name.endswith(".codes") else "scales"
        kind = codes if _owner(name, layers) else "floating"
        sizes[kind] += value.numel() * value.element_size()
    bits = sum(
        part.metadata["weight_bits"] * torch.Size(part.metadata["weight_shape"]).numel()
        for name in packed.layers
        for part in packed.parts(name)
    )
    promised = bits / 8 + sizes["scales"] + sizes["floating"]
    if sum(sizes.values()) > OVERHEAD_LIMIT * promised:
        raise QuantArenaError(f"{sum(sizes.values())} bytes stored where {promised:.0f} are needed")
    return sizes


def _few(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"
