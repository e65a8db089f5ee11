"""Packed layers of one input as one layer: its outputs are theirs, in any order.

The kernels quantize the input once and unpack 16 neighbouring outputs at a time, from whatever
layer and width each of them comes; see ``csrc/mixed.h``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.kernels.call import NativeCall
from quantarena.methods.core.kernels.layout import Chunks, factors, plan_chunks
from quantarena.methods.core.packed.nodes.leaf import PackedLayer

_DIFFERING = ("weight_bits", "has_bias", "weight_shape")
"""Traits in which layers of one input may differ."""
_SHARED = ("act_scale", "act_zero", "in_mult")


def joinable(leaves: Sequence[PackedLayer]) -> bool:
    """Whether one native call can stand for these layers: alike in all but outputs and widths."""
    first = leaves[0]
    if any(leaf.library is not first.library for leaf in leaves):
        return False
    if any(leaf.native_call() is None for leaf in leaves):
        return False
    return all(_traits(leaf) == _traits(first) and _same_input(leaf, first) for leaf in leaves)


def joint_chunks(leaves: Sequence[PackedLayer], source: Tensor) -> Chunks:
    """The form of the whole layer's panels; the parts take it too.

    Args:
        leaves: the layers, see :func:`joinable`.
        source: (O,), place of each output among those of the layers side by side; of every group.
    """
    layers = [leaf.integer_layer() for leaf in leaves]
    first, groups = layers[0], layers[0].groups
    parts = [factors(layer) for layer in layers]
    codes = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
    whole = torch.cat(codes, dim=1)[:, source.long()].flatten(0, 1)
    chunks = plan_chunks(whole, groups, first.act_bits, leaves[0].library.wide)
    for leaf in leaves:
        leaf.repack(chunks.pair)
    return chunks


def joint_call(
    leaves: Sequence[PackedLayer], source: Tensor, start: Tensor, units: Tensor
) -> NativeCall:
    """The call of the whole layer.

    Args:
        leaves: the layers, which have the form that :func:`joint_chunks` found.
        source: see there, int32.
        start: ``Chunks.start`` of the whole.
        units: ``Chunks.units`` of the whole.
    """
    first = leaves[0]
    calls = [call for leaf in leaves if (call := leaf.native_call()) is not None]
    rows = sum(leaf.metadata["weight_shape"][0] for leaf in leaves)
    metadata = {**first.metadata, "weight_shape": [rows, *first.metadata["weight_shape"][1:]]}
    whole = {"chunk_start": start, "chunk_units": units, "source": source}
    shared = {n: b for n, b in first.named_buffers() if n in _SHARED}
    return NativeCall(first.library, metadata, first.uses_pairs, {**whole, **shared}, calls)


def _traits(leaf: PackedLayer) -> dict[str, Any]:
    traits: dict[str, Any] = {n: v for n, v in leaf.metadata.items() if n not in _DIFFERING}
    return {**traits, "in": leaf.metadata["weight_shape"][1:]}


def _same_input(one: PackedLayer, other: PackedLayer) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in _SHARED]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)
