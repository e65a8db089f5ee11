"""A packed layer as an operator of torch: for ``torch.compile``, ``torch.export`` and ``make_fx``.

A direct call of the kernels is faster (see docs/kernels.md) and is what runs in eager mode; but a
compiler cannot see it. The operator takes the layer's buffers as tensors and its form as integers,
so that an exported program carries the weights and runs in another process. It has a kernel for the
CPU and a fake one, which gives the shape and strides of the output.
"""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from quantarena.methods.core.kernels import native, oracle
from quantarena.methods.core.kernels.call import NativeCall
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.kernels.geometry import output_strides
from quantarena.methods.core.kernels.layout import unpack_panels

NAME = "quantarena::packed_layer"
BUFFERS = (
    "panels",
    "chunk_start",
    "chunk_units",
    "weight_sum",
    "weight_scale",
    "weight_zero",
    "act_scale",
    "act_zero",
    "in_mult",
    "bias",
)
"""Buffers of a layer in the order of the operator's arguments."""
_OPTIONAL = frozenset({"weight_zero", "in_mult", "bias"})
_KINDS = ("linear", "conv2d")
_PAIRS = ("stride", "padding", "dilation")
_MOST_CALLS = 4096
OPERATORS = torch.library.Library("quantarena", "FRAGMENT")  # type: ignore[no-untyped-call]
"""The operators of this package; ``groups.custom_op`` adds to them."""
OPERATORS.define(  # type: ignore[no-untyped-call]
    "packed_layer(Tensor x, "
    + ", ".join(f"Tensor{'?' if name in _OPTIONAL else ''} {name}" for name in BUFFERS)
    + ", int[] form, SymInt step, bool last, bool integer) -> Tensor"
)
_CALLS: dict[tuple[Any, ...], NativeCall] = {}


def traced(x: Tensor) -> bool:
    """Whether a compiler looks on, so that a call of the kernels must be an operator."""
    return torch.compiler.is_compiling() or isinstance(x, FakeTensor)


def packed_layer(
    x: Tensor,
    buffers: dict[str, Tensor | None],
    metadata: dict[str, Any],
    pair: bool,
    step: int,
    *,
    last: bool = False,
    integer: bool = False,
) -> Tensor:
    """The output of a packed layer, through the operator.

    Args:
        x: float32 input on the CPU.
        buffers: the layer's buffers by name, see ``BUFFERS``.
        metadata: description of the layer, see ``IntegerLayer.metadata``.
        pair: form of the panels, see ``Chunks.pair``.
        step: entry of the activation tables.
        last: write images channels_last whatever the input's format.
        integer: give the sums before scaling, int32.
    """
    tensors = [buffers.get(name) for name in BUFFERS]
    form = form_of(metadata, pair)
    output: Tensor = torch.ops.quantarena.packed_layer(x, *tensors, form, step, last, integer)
    return output


def form_of(metadata: dict[str, Any], pair: bool) -> list[int]:
    """A layer's description as integers: kind, widths, form of panels, groups, geometry, shape."""
    pairs = [int(value) for name in _PAIRS for value in metadata[name]]
    return [
        _KINDS.index(metadata["kind"]),
        int(metadata["weight_bits"]),
        int(metadata["act_bits"]),
        int(pair),
        int(metadata["groups"]),
        *pairs,
        *(int(size) for size in metadata["weight_shape"]),
    ]


def metadata_of(form: list[int]) -> tuple[dict[str, Any], bool]:
    """The inverse of :func:`form_of`: a description, and the form of the panels."""
    kind, weight_bits, act_bits, pair, groups, *rest = form
    geometry = {name: rest[2 * i : 2 * i + 2] for i, name in enumerate(_PAIRS)}
    metadata = {
        "kind": _KINDS[kind],
        "weight_bits": weight_bits,
        "act_bits": act_bits,
        "groups": groups,
        **geometry,
        "weight_shape": rest[2 * len(_PAIRS) :],
    }
    return metadata, bool(pair)


def _on_cpu(x: Tensor, *arguments: Any) -> Tensor:
    *tensors, form, step, last, integer = arguments
    present = {n: t for n, t in zip(BUFFERS, tensors, strict=True) if t is not None}
    metadata, pair = metadata_of(form)
    library = native.library()
    if library.run is None:
        return _fake(x, *arguments).copy_(_reference(x, present, form, step, integer))
    # addresses and numbers are all that a call is made of, so equal keys mean equal calls
    key = (tuple((n, t.data_ptr()) for n, t in present.items()), tuple(form))
    call = _CALLS.get(key)
    if call is None or call.entries != present["act_scale"].numel():
        if len(_CALLS) >= _MOST_CALLS:
            _CALLS.clear()
        call = _CALLS[key] = NativeCall(library, metadata, pair, present)
        call.buffers = {}  # the caller keeps them alive while it calls
    return call(x, step, None, native.INTEGER if integer else 0, last=last)


def _reference(
    x: Tensor, present: dict[str, Tensor], form: list[int], step: int, integer: bool
) -> Tensor:
    metadata, pair = metadata_of(form)
    shape, bits, groups = (metadata[n] for n in ("weight_shape", "weight_bits", "groups"))
    codes = unpack_panels(present["panels"], tuple(shape), bits, groups, pair)
    zero = present.get("weight_zero")
    layer = IntegerLayer(
        kind=metadata["kind"],
        weight_codes=codes,
        weight_bits=bits,
        weight_scale=present["weight_scale"],
        weight_zero=torch.zeros(shape[0], dtype=torch.int32) if zero is None else zero,
        act_bits=metadata["act_bits"],
        act_scale=present["act_scale"],
        act_zero=present["act_zero"],
        in_mult=present.get("in_mult"),
        bias=present.get("bias"),
        **{name: tuple(metadata[name]) for name in _PAIRS},
        groups=groups,
    )
    return oracle.accumulators(layer, x, step) if integer else oracle.forward(layer, x, step)


def _fake(x: Tensor, *arguments: Any) -> Tensor:
    *_, form, _, last, integer = arguments
    metadata, _ = metadata_of(form)
    shape, strides = output_strides(metadata, x, last=last)
    return x.new_empty_strided(shape, strides, dtype=torch.int32 if integer else x.dtype)


OPERATORS.impl("packed_layer", _on_cpu, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake(NAME, _fake, lib=OPERATORS)
