"""The packed checkpoint: what is stored of a packed network, and a network made of that again.

It is written in one of two layouts: ``packed.safetensors`` beside ``packed.json`` here, for any
network, or as diffusers lays out a network of its own (``diffusers_layout``). Both are read.

The tensors do not depend on a kernel: code streams of ``formats.pack_codes``, scales, zero points,
orders of channels, float branches, and the parts of the network that stayed in floating point.

The JSON describes every layer as a tree (``nodes.rebuild``), the sampler calls that tables are for,
the modules that became tables, and the attention products, and says how the model was made. Of
``packed.json``, it holds the SHA-256 of the tensors, and the tensors hold that of what it says, so
that neither can be edited without the other.

Loading needs the structure of the network but no floating-point weights of its quantized layers;
the loaded network gives the same outputs bit for bit.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from quantarena.methods.core.bits import AttentionBits
from quantarena.methods.core.clock import CallClock, CallSchedule
from quantarena.methods.core.errors import BrokenModel, QuantArenaError
from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.attention_hooks import CHILD, install
from quantarena.methods.core.model.model import place
from quantarena.methods.core.model.time_table import ScheduledTable
from quantarena.methods.core.packed import diffusers_layout
from quantarena.methods.core.packed.diffusers_layout import description_file
from quantarena.methods.core.packed.files import (
    DESCRIBED,
    DIGEST,
    DOCUMENT,
    FORMAT,
    TENSORS,
    VERSION,
    Document,
    Tensors,
    as_read,
    description_sha256,
    file_sha256,
    read,
    text,
)
from quantarena.methods.core.packed.native_attention import Native
from quantarena.methods.core.packed.nodes.fusion import fuse
from quantarena.methods.core.packed.nodes.node import Node, take
from quantarena.methods.core.packed.nodes.rebuild import build
from quantarena.methods.core.packed.number_format import tell_formats
from quantarena.methods.core.packed.pack import PackedModel, backend_of, channels_last
from quantarena.methods.core.packed.refusals import refuse_float_tools
from quantarena.methods.core.trace.network import AttentionInfo, AttentionKind

OVERHEAD_LIMIT = 1.1
"""Largest accepted ratio of the stored tensors to what codes, scales and floats need."""

_STORED = {"act_zero": torch.uint8, "weight_zero": torch.int16}  # int32 in memory
_MISFIT = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError)


def save_packed(packed: PackedModel, folder: Path, *, meta: Mapping[str, Any]) -> Document:
    """Write a checkpoint.

    Args:
        packed: the network; at least one layer of it is quantized.
        folder: created when missing.
        meta: facts for the reader, JSON types: method, bits, policy, seed, base model.

    Returns:
        The content of ``packed.json``.

    Raises:
        QuantArenaError: nothing is quantized, or a layer is of an unknown kind.
    """
    described, tensors = described_of(packed), tensors_of(packed)
    sizes = sizes_of(packed, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / TENSORS
    said: Document = {"version": VERSION, "bytes": sizes, "meta": as_read(meta), **described}
    save_file(tensors, file, {DIGEST: description_sha256(said)})  # one entry: a set order
    document: Document = {
        "format": FORMAT,
        "sha256": file_sha256(file),
        **said,
        "bytes": {**sizes, "file": file.stat().st_size},
    }
    (folder / DOCUMENT).write_text(json.dumps(document, separators=(",", ":")) + "\n")
    return document


def tensors_of(packed: PackedModel) -> Tensors:
    """The tensors that a checkpoint stores, by name, as copies on the CPU."""
    tensors: Tensors = {}
    for name, value in packed.module.state_dict().items():
        if _inside(name, (f"{path}.{CHILD}" for path in packed.attention)):
            continue
        leaf = name.rpartition(".")[2]
        if _inside(name, packed.layers):
            if leaf == "weight_zero" and not value.any():
                continue  # symmetric
            value = value.to(_STORED.get(leaf, value.dtype))
        tensors[name] = value
    for path, products in packed.attention.items():
        tensors |= {f"{path}.{CHILD}/{name}": value for name, value in products.ranges().items()}
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def load_packed(folder: Path, skeleton: nn.Module) -> PackedModel:
    """Rebuild a network.

    Args:
        folder: a folder with a packed network in either layout.
        skeleton: the network as its configuration builds it, with any weights or on the meta
            device; it is changed in place and becomes the result's module.

    Returns:
        The network, whose clock knows the sampler calls that its tables are for.

    Raises:
        BrokenModel: files are missing, truncated, edited, of a future version, or of another
            network; one line.
    """
    read_from = read if (folder / DOCUMENT).exists() else diffusers_layout.read
    document, tensors = read_from(folder)
    return assemble(document, tensors, skeleton, description_file(folder) or folder)


def assemble(
    document: Document,
    tensors: Tensors,
    skeleton: nn.Module,
    file: Path | str,
    loaded: Collection[str] = (),
) -> PackedModel:
    """Build a network from what a checkpoint stores.

    Args:
        document: describes the tensors; of the present version.
        tensors: those that are not in the skeleton yet; what is used is taken out.
        skeleton: as for ``load_packed``.
        file: where the description is from, for messages.
        loaded: names of the tensors that the skeleton already has from the checkpoint.

    Raises:
        BrokenModel: description, tensors and network do not belong together; one line.
    """
    try:
        clock = CallClock(_schedule(document["schedule"]))
        tables, attention = list(document["tables"]), dict(document["attention"])
        products = {n: _attention(n, d, tensors, clock) for n, d in attention.items()}
        nodes = {n: _node(n, d, tensors) for n, d in document["layers"].items()}
    except _MISFIT as error:
        raise BrokenModel(f"{file} does not describe its tensors: {text(error)}") from None
    for name, node in nodes.items():
        _check_place(file, name, node, skeleton)
        node.set_clock(clock)
        place(skeleton, name, node)
    for name in (*tables, *products):
        if name not in dict(skeleton.named_modules()):
            raise BrokenModel(f"{file} has a module {name}, the network has none")
    for name in tables:
        if (values := tensors.get(f"{name}.values")) is None:
            raise BrokenModel(f"{file} does not describe its tensors: table {name} has no values")
        place(skeleton, name, ScheduledTable(torch.empty_like(values), clock))
    _load_floats(file, skeleton, tensors, nodes, loaded)
    for quant in products.values():
        install(skeleton, quant)
        quant.mode = Native()
    channels_last(skeleton.eval().requires_grad_(False))
    fuse(skeleton, nodes.values())
    refuse_float_tools(skeleton)
    tell_formats(skeleton)
    return PackedModel(skeleton, nodes, backend_of(nodes, products), clock, products)


def described_of(packed: PackedModel) -> Document:
    """What a checkpoint says about its tensors: the entries ``DESCRIBED``, JSON types.

    Raises:
        QuantArenaError: nothing is quantized, or a layer is of an unknown kind.
    """
    if not packed.layers:
        raise QuantArenaError("nothing is quantized: there is no packed checkpoint to write")
    layers: Document = {}
    for name, layer in packed.layers.items():
        if not isinstance(layer, Node):
            kind = type(layer).__name__
            raise QuantArenaError(f"{name} is a {kind}, which no packed checkpoint holds")
        layers[name] = layer.describe()
    schedule = packed.clock.schedule
    modules = packed.module.named_modules()
    attention = {
        name: {"info": asdict(products.info), "bits": asdict(products.bits)}
        for name, products in packed.attention.items()
    }
    described = {
        "layers": layers,
        "schedule": None if schedule is None else asdict(schedule),
        "tables": [name for name, module in modules if isinstance(module, ScheduledTable)],
        "attention": attention,
    }
    return {name: as_read(described[name]) for name in DESCRIBED}


def _schedule(document: Mapping[str, Any] | None) -> CallSchedule | None:
    if document is None:
        return None
    return CallSchedule(document["sampler"], tuple(float(t) for t in document["timesteps"]))


def _node(name: str, document: Mapping[str, Any], tensors: Tensors) -> Node:
    try:
        return build(document, take(tensors, f"{name}."))
    except _MISFIT as error:
        raise ValueError(f"{name} {text(error)}") from None


def _attention(
    name: str, document: Mapping[str, Any], tensors: Tensors, clock: CallClock
) -> QuantAttention:
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in document["info"].items()
    }
    info = AttentionInfo(**{**fields, "kind": AttentionKind(fields["kind"])})
    products = QuantAttention(info, AttentionBits(**document["bits"]), clock)
    products.load_ranges(take(tensors, f"{name}.{CHILD}/"))
    return products


def _load_floats(
    file: Path | str,
    skeleton: nn.Module,
    tensors: Tensors,
    nodes: Mapping[str, Node],
    loaded: Collection[str],
) -> None:
    """Give the network the tensors that are left."""
    for name in tensors:
        owner, _, leaf = name.rpartition(".")
        parameters = dict(skeleton.named_modules()).get(owner, nn.Module())._parameters
        if leaf in parameters and parameters[leaf] is None:  # such as a bias that a fold gave
            parameters[leaf] = nn.Parameter(torch.empty_like(tensors[name]), requires_grad=False)
    try:
        misfits = skeleton.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise BrokenModel(
            f"the tensors of {file} do not fit the network: {str(error).splitlines()[-1].strip()}"
        ) from None
    missing = set(misfits.missing_keys) - set(loaded)
    lost = sorted(name for name in missing if not _inside(name, nodes))
    if lost:
        raise BrokenModel(f"{file} lacks {_few(lost)} of the network")
    if misfits.unexpected_keys:
        raise BrokenModel(f"{file} has {_few(misfits.unexpected_keys)}, the network has not")


def _check_place(file: Path | str, name: str, node: Node, skeleton: nn.Module) -> None:
    try:
        original = skeleton.get_submodule(name)
    except AttributeError:
        raise BrokenModel(f"{file} has a layer {name}, the network has none") from None
    shape = list(node.weight_shape)
    expected = list(getattr(original, "weight", torch.empty(0)).shape)
    if not isinstance(original, nn.Conv1d | nn.Conv2d | nn.Linear) or shape != expected:
        raise BrokenModel(f"{file} has {name} in shape {shape}, the network's is {expected}")


def _inside(name: str, paths: Any) -> bool:
    """Whether a tensor's name lies inside a module at one of the paths."""
    steps = name.split(".")
    return not {".".join(steps[:n]) for n in range(1, len(steps))}.isdisjoint(paths)


def sizes_of(packed: PackedModel, tensors: Tensors) -> dict[str, int]:
    """Bytes by purpose: codes, scales, floating.

    Raises:
        QuantArenaError: more bytes are stored than the bits promise.
    """
    sizes = {"codes": 0, "scales": 0, "floating": 0}
    for name, value in tensors.items():
        codes = "codes" if name.endswith(".codes") else "scales"
        kind = codes if _inside(name, packed.layers) else "floating"
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
