"""A layer with groups of input channels as an operator of torch; see ``kernels.custom_op``."""

from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.custom_op import OPERATORS, form_of, metadata_of
from quantarena.methods.core.kernels.geometry import output_strides
from quantarena.methods.core.kernels.groups.call import GroupCall, Groups

NAME = "quantarena::grouped_layer"
BUFFERS = (
    "panels",
    "chunk_start",
    "chunk_units",
    "weight_scale",
    "weight_zero",
    "in_mult",
    "bias",
    "edge",
    "order",
    "act_scale",
    "act_zero",
)
"""Buffers of a layer in the order of the operator's arguments."""
_OPTIONAL = frozenset({"weight_zero", "in_mult", "bias", "order"})
_OF_GROUPS = frozenset({"edge", "order", "act_scale", "act_zero"})
_MOST_CALLS = 4096
_CALLS: dict[tuple[Any, ...], GroupCall] = {}
OPERATORS.define(  # type: ignore[no-untyped-call]
    "grouped_layer(Tensor x, "
    + ", ".join(f"Tensor{'?' if name in _OPTIONAL else ''} {name}" for name in BUFFERS)
    + ", int[] form, SymInt step, bool last) -> Tensor"
)


def grouped_layer(
    x: Tensor,
    buffers: dict[str, Tensor | None],
    metadata: dict[str, Any],
    pair: bool,
    step: int,
    *,
    last: bool = False,
) -> Tensor:
    """The output of a layer with groups, through the operator.

    Args:
        x: float32 input on the CPU.
        buffers: the layer's buffers by name, see ``BUFFERS``; ``weight_scale`` is (O,), or (G, O).
        metadata: description of the whole layer, see ``IntegerLayer.metadata``.
        pair: form of the panels, see ``Chunks.pair``.
        step: entry of the activation tables.
        last: write images channels_last whatever the input's format.
    """
    tensors = [buffers.get(name) for name in BUFFERS]
    output: Tensor = torch.ops.quantarena.grouped_layer(
        x, *tensors, form_of(metadata, pair), step, last
    )
    return output


def call_of(
    library: native.Library,
    metadata: dict[str, Any],
    pair: bool,
    buffers: dict[str, Tensor],
    branch: Any = None,
) -> GroupCall:
    """The native call of a layer with these buffers, see ``BUFFERS``; absent ones are left out."""
    apart = buffers["weight_scale"].dim() == 2
    groups = Groups(
        buffers["edge"],
        buffers.get("order"),
        buffers["act_scale"],
        buffers["act_zero"],
        buffers["weight_scale"] if apart else None,
    )
    left_out = _OF_GROUPS | ({"weight_scale"} if apart else set())
    own = {name: value for name, value in buffers.items() if name not in left_out}
    return GroupCall(library, metadata, pair, own, groups, branch=branch)


def _on_cpu(x: Tensor, *arguments: Any) -> Tensor:
    *tensors, form, step, last = arguments
    present = {n: t for n, t in zip(BUFFERS, tensors, strict=True) if t is not None}
    # addresses and numbers are all that a call is made of, so equal keys mean equal calls
    shapes = (len(present["edge"]), present["weight_scale"].dim(), len(present["act_scale"]))
    key = (tuple((n, t.data_ptr()) for n, t in present.items()), tuple(form), shapes)
    call = _CALLS.get(key)
    if call is None:
        if len(_CALLS) >= _MOST_CALLS:
            _CALLS.clear()
        metadata, pair = metadata_of(form)
        call = _CALLS[key] = call_of(native.library(), metadata, pair, present)
        call.release()  # the caller keeps them alive while it calls
    return call(x, step, last=last)


def _fake(x: Tensor, *arguments: Any) -> Tensor:
    *_, form, _, last = arguments
    shape, strides = output_strides(metadata_of(form)[0], x, last=last)
    return x.new_empty_strided(shape, strides)


OPERATORS.impl("grouped_layer", _on_cpu, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake(NAME, _fake, lib=OPERATORS)
