"""Whether two traced calls are the same function of their inputs."""

import ctypes
import struct
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from quantarena.methods.core.kernels.observer import Kind, NativeOperation
from quantarena.methods.core.packed.step.simplify import bound
from quantarena.methods.core.packed.step.trace import Operation, Trace

MOST_COMPARED = 1 << 20
"""Elements of constants made during a call that are compared; weights are the same memory."""
_CALL = struct.Struct("=64qf4x")  # QaAttention
_CHANGING = (29, 30, 31, 32, 33, 35)  # addresses of its operands
_FIRST, _GRID = 40, 7  # entry of its first grid's table, distance to the next grid's


class Signature:
    """What must be the same in two calls of one network.

    Args:
        trace: of a call, before it is simplified.
        shared: entries of tables are those of the call, and may differ.
    """

    def __init__(self, trace: Trace, *, shared: bool) -> None:
        self._operations = [_signed(operation, shared=shared) for operation in trace.operations]
        self._outputs = repr(trace.outputs)
        self._buffers = [(buffer.size, buffer.input) for buffer in trace.buffers]
        used = {view.buffer: view for op in trace.operations for view in op.reads}
        self._constants = {
            number: (used.get(number), buffer.tensor)
            for number, buffer in enumerate(trace.buffers)
            if buffer.tensor is not None and buffer.input < 0
        }

    def differs(self, other: "Signature") -> str:
        """Why the calls are not one function of their inputs; empty where they are."""
        if self._operations != other._operations or self._outputs != other._outputs:
            return "it does not run the same operations on other values"
        if self._buffers != other._buffers or self._constants.keys() != other._constants.keys():
            return "it does not use memory in the same way on other values"
        for number, (view, tensor) in self._constants.items():
            _, twin = other._constants[number]
            assert tensor is not None
            assert twin is not None
            if tensor.data_ptr() == twin.data_ptr():
                continue
            if view is None or view.numel > MOST_COMPARED:
                return "it makes a large constant anew in each call"
            if not torch.equal(bound(view, tensor), bound(view, twin)):
                return "it takes other constants on other values"
        return ""


def _signed(operation: Operation, *, shared: bool) -> tuple[Any, ...]:
    call = operation.native
    if call is None:
        parts = (operation.args, operation.kwargs, operation.fresh, operation.expected)
        return (operation.name, *map(repr, parts))
    entry = None if shared and call.tables else call.entry
    return (
        call.kind,
        repr(operation.operands),
        _bytes(call, shared=shared),
        None if call.more is None else bytes(call.more),
        call.flags,
        entry,
    )


def _bytes(call: NativeOperation, *, shared: bool) -> bytes:
    """A call's structure without what may differ."""
    if call.kind is not Kind.ATTENTION:
        size = ctypes.sizeof(call.params)
        return ctypes.string_at(ctypes.addressof(call.params), size)
    words = list(_CALL.unpack(call.params))
    for at in _CHANGING:
        words[at] = 0
    for grid in range(4):
        if shared and call.flags >> grid & 1:
            words[_FIRST + grid * _GRID] = 0
    return _CALL.pack(*words)


def apart(value: Any, tensors: list[Tensor], *, turned: bool = False) -> Any:
    """Arguments with each tensor in memory of its own, in the same layout.

    Args:
        value: nested arguments.
        tensors: gets the new tensors, in order.
        turned: with other values: rows in reverse order, and numbers three quarters as large.
    """

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        tensors.append(_copied(leaf, turned=turned))
        return tensors[-1]

    return tree_map(copied, value)


def _copied(tensor: Tensor, *, turned: bool) -> Tensor:
    shape, strides = tensor.shape, tensor.stride()
    if tensor.numel() == 0:
        return torch.empty_strided(shape, strides, dtype=tensor.dtype)
    span = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    memory = tensor.as_strided((span,), (1,)).clone()
    copy = memory.as_strided(shape, strides, 0)
    if turned and all(stride or size == 1 for size, stride in zip(shape, strides, strict=True)):
        other = tensor.flip(0) if tensor.dim() else tensor
        copy.copy_(other * 0.75 if tensor.is_floating_point() else other)
    return copy
