"""C structures of a layer, and of the memory layout of its input and output."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quantarena.methods.core.kernels import native, oracle
from quantarena.methods.core.kernels.layout import PANEL, UNIT


@dataclass(frozen=True, slots=True)
class Geometry:
    """Strides of an input and its output, in the form that the native kernels take."""

    struct: native.GeometryStruct | None
    """The C structure; None where the input must be made contiguous first."""
    address: int
    """Address of ``struct``."""
    shape: tuple[int, ...]
    """Shape of the output."""
    strides: tuple[int, ...]
    """Strides of the output, in elements."""
    copied: bool = False
    """Whether the strides of the input are those of a channels_last copy."""


_COPY = Geometry(None, 0, (), ())


def plan(metadata: dict[str, Any], x: Tensor, *, last: bool = False) -> Geometry:
    """Plans the call of a layer on an input.

    Args:
        metadata: description of the layer, see ``IntegerLayer.metadata``.
        x: the input; only its shape and strides matter.
        last: write images in channels_last; else in the memory format of the input.

    Returns:
        The geometry, which is the same for all inputs of this shape and these strides.

    Raises:
        ValueError: the input does not fit the layer.
    """
    oracle.check_shape(metadata, tuple(x.shape))
    return _linear(metadata, x) if metadata["kind"] == "linear" else _convolution(metadata, x, last)


def layer_struct(
    metadata: dict[str, Any],
    pair: bool,
    buffers: Mapping[str, Tensor],
    *,
    sums: bool = False,
    parts: "ctypes.Array[ctypes.c_void_p] | None" = None,
) -> native.LayerStruct:
    """The C structure of a packed layer.

    Args:
        metadata: description of the layer, see ``IntegerLayer.metadata``.
        pair: form of the panels, see ``Chunks.pair``.
        buffers: the layer's buffers by name; they must outlive the result.
        sums: add up the outputs of the groups; the bias then belongs to the sum.
        parts: addresses of the structures of the layers that this one is made of; they must
            outlive the result.

    Returns:
        The structure, with null pointers for absent buffers.
    """
    shape, groups = metadata["weight_shape"], metadata["groups"]
    kernel = tuple(shape[2:]) or (1, 1)
    out, depth = shape[0] // groups, -(-shape[1] // 4) * 4
    names = (
        "panels chunk_start chunk_units weight_scale weight_sum weight_zero bias in_mult "
        "act_scale act_zero"
    )
    pointers = [buffers[name].data_ptr() if name in buffers else None for name in names.split(" ")]
    count = 0 if parts is None else len(parts)
    return native.LayerStruct(
        metadata["weight_bits"],
        (1 << metadata["act_bits"]) - 1,
        int(pair),
        groups,
        out,
        shape[1],
        depth,
        -(-depth * kernel[0] * kernel[1] // UNIT),
        -(-out // PANEL),
        *kernel,
        *metadata["stride"],
        *metadata["padding"],
        *metadata["dilation"],
        buffers["act_scale"].numel(),
        int(sums),
        count,
        *pointers,
        ctypes.addressof(parts) if count and parts is not None else None,
        buffers["source"].data_ptr() if count else None,
    )


def output_strides(
    metadata: dict[str, Any], x: Tensor, *, last: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of a layer's output, in elements; arguments as for :func:`plan`.

    Sizes of ``x`` may be symbols of a compiler.
    """
    oracle.check_shape(metadata, tuple(x.shape))
    out = int(metadata["weight_shape"][0])
    if metadata["kind"] == "linear":
        shape: tuple[int, ...] = (*x.shape[:-1], out)
        return shape, contiguous_strides(shape)
    height, width = oracle.output_size(metadata, x.shape[2], x.shape[3])
    shape = (x.shape[0], out, height, width)
    if last or (x.stride(1) == 1 and not x.is_contiguous()):
        return shape, (height * width * out, 1, width * out, out)
    return shape, contiguous_strides(shape)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides of a shape, in elements."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _linear(metadata: dict[str, Any], x: Tensor) -> Geometry:
    """Geometry of a matrix whose rows have one pitch, as an image of one line of pixels."""
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        return _COPY
    out = int(metadata["weight_shape"][0])
    rows, pitch = 1, x.shape[-1]
    for size, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if rows == 1:
            pitch = stride
        elif x.numel() and stride != rows * pitch:
            return _COPY
        rows *= size
    shape = (*x.shape[:-1], out)
    struct = native.GeometryStruct(1, 1, rows, 1, rows, 0, 0, pitch, 1, 0, 0, out, 1)
    return Geometry(struct, ctypes.addressof(struct), shape, contiguous_strides(shape))


def _convolution(metadata: dict[str, Any], x: Tensor, last: bool) -> Geometry:
    """Geometry of an image with contiguous pixels or channels."""
    batch, _, height, width = x.shape
    xb, xc, xr, xp = x.stride()
    if xc != 1 and not (xp == 1 or x.is_contiguous()):
        return _COPY
    shape, strides = output_strides(metadata, x, last=last)
    _, _, out_height, out_width = shape
    yb, yc, yr, yp = strides
    struct = native.GeometryStruct(
        batch, height, width, out_height, out_width, xb, xr, xp, xc, yb, yr, yp, yc
    )
    return Geometry(struct, ctypes.addressof(struct), shape, strides)
