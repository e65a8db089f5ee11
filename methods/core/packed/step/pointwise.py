"""Element by element operations of torch as programs of one native pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from quantarena.methods.core.kernels.step_abi import (
    CODES,
    DIMS,
    INPUTS,
    PointCodeStruct,
    PointOp,
    PointwiseStruct,
)
from quantarena.methods.core.packed.step.trace import Operation, View

aten = torch.ops.aten
INEXACT = frozenset(
    {PointOp.EXP, PointOp.SIN, PointOp.COS, PointOp.SILU, PointOp.GELU, PointOp.GELU_TANH}
)
"""Functions whose last bits are not torch's; all others are equal to torch bit for bit."""


@dataclass(frozen=True, slots=True)
class Code:
    """One instruction.

    Attributes:
        op: the operation.
        a: number of its first value: inputs first, then earlier instructions counted from the end
            of the inputs, as ``-1`` for the first instruction.
        b: of its second value, or 0.
        value: the number of operations with one.
    """

    op: PointOp
    a: int
    b: int = 0
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Pointwise:
    """A program.

    Attributes:
        result: where it writes.
        inputs: what it reads, each in the shape of the result.
        codes: instructions; without any, the input is copied.
    """

    result: View
    inputs: tuple[View, ...]
    codes: tuple[Code, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether it computes torch's bits."""
        return not any(code.op in INEXACT for code in self.codes)


_UNARY = {
    aten.neg.default: PointOp.NEGATE,
    aten.exp.default: PointOp.EXP,
    aten.sin.default: PointOp.SIN,
    aten.cos.default: PointOp.COS,
    aten.silu.default: PointOp.SILU,
    aten.silu_.default: PointOp.SILU,
}
_BINARY = {
    aten.add.Tensor: (PointOp.ADD, PointOp.ADD_NUMBER, PointOp.ADD_NUMBER),
    aten.add_.Tensor: (PointOp.ADD, PointOp.ADD_NUMBER, None),
    aten.sub.Tensor: (PointOp.SUB, None, None),
    aten.rsub.Scalar: (None, PointOp.NUMBER_SUB, None),
    aten.mul.Tensor: (PointOp.MUL, PointOp.MUL_NUMBER, PointOp.MUL_NUMBER),
    aten.mul_.Tensor: (PointOp.MUL, PointOp.MUL_NUMBER, None),
    aten.div.Tensor: (PointOp.DIV, PointOp.DIV_NUMBER, None),
}
"""Of two tensors, of a tensor and a number, and of a number and a tensor."""
_COPIES = frozenset({aten.clone.default, aten._to_copy.default, aten.copy_.default})


def pointwise(operation: Operation) -> list[Pointwise] | None:
    """The programs that compute an operation; None where there are none."""
    function = operation.function
    if not operation.writes or any(view.dtype != torch.float32 for view in operation.writes):
        return None
    result = operation.writes[0]
    if function in _UNARY:
        return _program(result, operation.args[:1], _UNARY[function])
    if function is aten.gelu.default:
        tanh = operation.kwargs.get("approximate", "none") == "tanh"
        return _program(result, operation.args[:1], PointOp.GELU_TANH if tanh else PointOp.GELU)
    if function in _BINARY:
        return _binary(operation, result)
    if function in _COPIES:
        source = operation.args[1] if function is aten.copy_.default else operation.args[0]
        return _program(result, (source,), None)
    if function is aten.cat.default:
        return _cat(operation, result)
    if function is aten.upsample_nearest2d.default:
        return _upsample(operation, result)
    return None


def _program(result: View, values: Sequence[Any], op: PointOp | None) -> list[Pointwise] | None:
    inputs = []
    for value in values:
        spread = expanded(value, result.shape) if isinstance(value, View) else None
        if spread is None:
            return None
        inputs.append(spread)
    codes = () if op is None else (Code(op, 0, len(inputs) - 1),)
    return [Pointwise(result, tuple(inputs), codes)]


def _binary(operation: Operation, result: View) -> list[Pointwise] | None:
    first, second = operation.args[:2] if len(operation.args) > 1 else (operation.args[0], None)
    if operation.kwargs.get("alpha", 1) != 1 or len(operation.args) > 2:
        return None
    both, with_number, number_first = _BINARY[operation.function]
    if isinstance(first, View) and isinstance(second, View):
        return None if both is None else _program(result, (first, second), both)
    tensor, number = (first, second) if isinstance(first, View) else (second, first)
    op = with_number if tensor is first else number_first
    if op is None or not isinstance(number, int | float):
        return None
    spread = expanded(tensor, result.shape)
    return None if spread is None else [Pointwise(result, (spread,), (Code(op, 0, 0, number),))]


def expanded(view: View, shape: tuple[int, ...]) -> View | None:
    """A view broadcast to a shape; None where it is of a type that programs do not read."""
    if view.dtype not in (torch.float32, torch.int64) or len(view.shape) > len(shape):
        return None
    lead = len(shape) - len(view.shape)
    strides = [0] * lead
    for size, wanted, stride in zip(view.shape, shape[lead:], view.strides, strict=True):
        if size not in (wanted, 1):
            return None
        strides.append(stride if size == wanted and size != 1 else 0)
    return replace(view, shape=shape, strides=tuple(strides))


def _cat(operation: Operation, result: View) -> list[Pointwise] | None:
    pieces = operation.args[0]
    axis = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
    axis %= len(result.shape)
    programs, start = [], 0
    for piece in pieces:
        if piece.dtype != torch.float32 or len(piece.shape) != len(result.shape):
            return None
        offset = result.offset + start * result.strides[axis] * result.dtype.itemsize
        programs.append(Pointwise(replace(result, offset=offset, shape=piece.shape), (piece,)))
        start += piece.shape[axis]
    return programs


def _upsample(operation: Operation, result: View) -> list[Pointwise] | None:
    """Every pixel as a square of equal ones, a copy from a view with strides of 0."""
    source = operation.args[0]
    if source.dtype != torch.float32 or len(source.shape) != 4:
        return None
    batch, channels, height, width = source.shape
    by = (result.shape[2] // height, result.shape[3] // width)
    scales = [scale for scale in operation.args[2:] if scale is not None]
    if (height * by[0], width * by[1]) != result.shape[2:] or scales not in ([], list(by)):
        return None
    shape = (batch, channels, height, by[0], width, by[1])
    (ys, yc, yr, yp), (xs, xc, xr, xp) = result.strides, source.strides
    to = replace(result, shape=shape, strides=(ys, yc, yr * by[0], yr, yp * by[1], yp))
    return [Pointwise(to, (replace(source, shape=shape, strides=(xs, xc, xr, 0, xp, 0)),))]


def fused(first: Pointwise, second: Pointwise) -> Pointwise | None:
    """``second`` with what ``first`` computes in place of reading it; None where it does not fit.

    ``second`` reads exactly what ``first`` writes, and nobody else does.
    """
    place = (first.result.buffer, first.result.offset, first.result.shape, first.result.strides)
    reads = [
        (view.buffer, view.offset, view.shape, view.strides) == place for view in second.inputs
    ]
    if not any(reads):
        return None
    inputs = list(dict.fromkeys(first.inputs))
    inputs += [
        view
        for view, read in zip(second.inputs, reads, strict=True)
        if not read and view not in inputs
    ]
    if len(inputs) > INPUTS or len(first.codes) + len(second.codes) > CODES:
        return None
    early = {-1 - k: -1 - k for k in range(len(first.codes))}
    early |= {k: inputs.index(view) for k, view in enumerate(first.inputs)}
    value = -len(first.codes) if first.codes else inputs.index(first.inputs[0])
    late = {-1 - k: -1 - k - len(first.codes) for k in range(len(second.codes))}
    for k, (view, read) in enumerate(zip(second.inputs, reads, strict=True)):
        late[k] = value if read else inputs.index(view)
    codes = [
        replace(code, a=names[code.a], b=names.get(code.b, 0))
        for names, program in ((early, first), (late, second))
        for code in program.codes
    ]
    return Pointwise(second.result, tuple(inputs), tuple(codes))


def program_struct(program: Pointwise) -> PointwiseStruct | None:
    """The C structure; None where the operands need more axes than it has."""
    views = (program.result, *program.inputs)
    axes = _axes(views)
    if axes is None:
        return None
    sizes, strides = axes
    struct = PointwiseStruct(inputs=len(program.inputs), count=len(program.codes))
    struct.size[:] = sizes
    for number, view in enumerate(views):
        struct.stride[number][:] = strides[number]
        struct.integer[number] = view.dtype == torch.int64
    inputs = len(program.inputs)

    def register(value: int) -> int:
        return value if value >= 0 else inputs - 1 - value

    for number, code in enumerate(program.codes):
        struct.code[number] = PointCodeStruct(
            code.op, register(code.a), register(code.b), code.value
        )
    return struct


def _axes(views: Sequence[View]) -> tuple[list[int], list[list[int]]] | None:
    """Sizes and strides, neighbouring axes joined where every operand allows it."""
    shape = views[0].shape
    order = [axis for axis, size in enumerate(shape) if size != 1]
    order.sort(key=lambda axis: -views[0].strides[axis])
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in views]
    for axis in order:
        size = shape[axis]
        joins = bool(sizes) and all(
            of[-1] == size * view.strides[axis] for of, view in zip(strides, views, strict=True)
        )
        if joins:
            sizes[-1] *= size
        else:
            sizes.append(size)
        for of, view in zip(strides, views, strict=True):
            if joins:
                of[-1] = view.strides[axis]
            else:
                of.append(view.strides[axis])
    missing = DIMS - len(sizes)
    if missing < 0:
        return None
    if missing == DIMS:  # a single element
        sizes, strides, missing = [1], [[1] for _ in views], DIMS - 1
    return [1] * missing + sizes, [[0] * missing + of for of in strides]
