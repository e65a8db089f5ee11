"""A recorded step that can be run: native pieces, pieces of torch, and one arena a caller."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_structure, tree_unflatten

from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.kernels.step_abi import (
    NOWHERE,
    OpStruct,
    StepLibrary,
)
from quantarena.methods.core.packed.step.arena import ALIGNMENT, extent, place
from quantarena.methods.core.packed.step.simplify import bound
from quantarena.methods.core.packed.step.steps import NativeStep, Step, TorchStep
from quantarena.methods.core.packed.step.trace import Operation, Trace, View

_CONSTANT, _ARENA = 0, 1
Held = dict[int, tuple[Tensor, int]]
"""Tensors of one call outside the arena by buffer, and the byte of it that each starts at."""

_Call = tuple[list[Any], dict[str, Any], list[tuple[Any, Any, View]]]
"""Arguments by place and by name, and the places that are filled at each call."""
_Memory = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]
"""Number of a buffer, and shape, strides and type of a tensor that is its memory."""


class ReplayFailed(QuantArenaError):
    """A recorded step that did not run through; nothing that its caller has was changed."""


@dataclass(frozen=True, slots=True)
class _Native:
    """Operations ``first`` to ``first + count`` in one call of the library."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class _Torch:
    """One operation of torch; ``results`` are the memory that it brings."""

    step: TorchStep


@dataclass(slots=True)
class Frame:
    """What one running call needs for itself.

    Attributes:
        arena: memory for all that the step makes, and addresses of all slots.
        slots: C array of addresses.
        views: tensors in the arena by view, for torch.
        calls: arguments of torch's operations.
    """

    arena: Tensor
    slots: Any
    views: dict[View, Tensor] = field(default_factory=dict)
    calls: dict[int, _Call] = field(default_factory=dict)


class Plan:
    """A recorded step.

    Args:
        trace: what was recorded.
        steps: what runs.
        library: kernels of recorded steps.

    Attributes:
        native_pieces: calls of the library in one step.
        torch_pieces: operations of torch in one step.
        native_operations: operations within the native pieces.
        arena_bytes: memory that one caller needs.
    """

    def __init__(self, trace: Trace, steps: Sequence[Step], library: StepLibrary) -> None:
        self.trace, self.steps, self._library = trace, list(steps), library
        self._slots: dict[int, int] = {}
        self._offsets: dict[int, int] = {}
        self._given = sorted(
            (buffer.input, number)
            for number, buffer in enumerate(trace.buffers)
            if buffer.input >= 0
        )
        leaves = [leaf for leaf in trace.outputs if isinstance(leaf, View)]
        self._outputs = list(dict.fromkeys(leaf.buffer for leaf in leaves))
        brought = {
            view.buffer
            for step in self.steps
            if isinstance(step, TorchStep)
            for view in step.operation.fresh
            if view is not None
        }
        self._outputs = [number for number in self._outputs if number not in brought]
        self._made = [self._memory(number, leaves) for number in self._outputs]
        self._is_tuple = trace.spec == tree_structure((None,) * len(trace.outputs))
        self._number(brought)
        self.arena_bytes = self._place()
        native = [step for step in self.steps if isinstance(step, NativeStep)]
        self._ops = (OpStruct * max(1, len(native)))(*[self._op(step) for step in native])
        self._op_size = ctypes.sizeof(OpStruct)
        self._ops_at = ctypes.addressof(self._ops)
        self.pieces: list[_Native | _Torch] = self._cut()
        self.native_operations = len(native)
        self.native_pieces = sum(isinstance(piece, _Native) for piece in self.pieces)
        self.torch_pieces = len(self.pieces) - self.native_pieces
        self._free: list[Frame] = []

    # ---- building --------------------------------------------------------------------------

    def _number(self, brought: set[int]) -> None:
        """Slots of inputs, outputs and results of torch; of the rest the arena's, or none."""
        outside = [number for _, number in self._given] + self._outputs + sorted(brought)
        for number, buffer in enumerate(self.trace.buffers):
            self._slots[number] = _ARENA if buffer.tensor is None else _CONSTANT
        for slot, number in enumerate(outside, start=2):
            self._slots[number] = slot
        self._slot_count = 2 + len(outside)

    def _memory(self, number: int, leaves: Sequence[View]) -> _Memory:
        """How the memory of an output is made: as the output itself, where that fills it."""
        size = self.trace.buffers[number].size
        for view in leaves:
            whole = view.numel * view.dtype.itemsize == size
            if view.buffer == number and view.offset == 0 and whole:
                return number, view.shape, view.strides, view.dtype
        return number, (size,), (1,), torch.uint8

    def _place(self) -> int:
        lives: dict[int, tuple[int, int]] = {}
        for at, step in enumerate(self.steps):
            for number in step.touched:
                if self._slots[number] == _ARENA:
                    lives[number] = (lives.get(number, (at, at))[0], at)
        sizes = {number: self.trace.buffers[number].size for number in lives}
        self._offsets = place(sizes, lives)
        return extent(sizes, self._offsets)

    def _op(self, step: NativeStep) -> OpStruct:
        op = OpStruct(step.kind, step.flags, step.table, 0, step.function)
        op.params = _address(step.params)
        op.more = _address(step.more)
        for number, operand in enumerate(op.at):
            view = step.operands[number] if number < len(step.operands) else None
            operand.slot = NOWHERE if view is None else self._slots[view.buffer]
            if view is not None:
                operand.offset = self._base(view.buffer) + view.offset
        return op

    def _base(self, number: int) -> int:
        """What is added to an offset in a buffer: its place in its slot."""
        slot = self._slots[number]
        if slot == _CONSTANT:
            tensor = self.trace.buffers[number].tensor
            assert tensor is not None
            return tensor.untyped_storage().data_ptr()
        return self._offsets[number] if slot == _ARENA else 0

    def _cut(self) -> list[_Native | _Torch]:
        pieces: list[_Native | _Torch] = []
        native = 0
        for step in self.steps:
            if isinstance(step, TorchStep):
                pieces.append(_Torch(step))
                continue
            last = pieces[-1] if pieces else None
            if isinstance(last, _Native):
                pieces[-1] = _Native(last.first, last.count + 1)
            else:
                pieces.append(_Native(native, 1))
            native += 1
        return pieces

    # ---- running ---------------------------------------------------------------------------

    def frame(self) -> Frame:
        """Memory for one call."""
        with torch.inference_mode(False):  # torch may write to it in any mode
            arena = torch.empty(self.arena_bytes + ALIGNMENT, dtype=torch.uint8)
        skip = -arena.data_ptr() % ALIGNMENT
        frame = Frame(arena[skip:], (ctypes.c_void_p * self._slot_count)())
        frame.slots[_ARENA] = frame.arena.data_ptr()
        return frame

    def __call__(self, inputs: Sequence[Tensor], step: int) -> Any:
        """The result on these inputs.

        Args:
            inputs: tensors in the shapes, strides and types of the recording.
            step: the sampler call.

        Raises:
            ReplayFailed: an operation refused its operands.
        """
        try:
            frame = self._free.pop()
        except IndexError:
            frame = self.frame()
        try:
            return self.run(frame, inputs, step)
        finally:
            for _, _, open_places in frame.calls.values():  # results of torch may go now
                for holder, name, _ in open_places:
                    holder[name] = None
            self._free.append(frame)

    def run(self, frame: Frame, inputs: Sequence[Tensor], step: int) -> Any:
        """The result, computed in a given frame; see ``__call__``."""
        held = self.begin(frame, inputs)
        threads = torch.get_num_threads()
        for piece in self.pieces:
            if isinstance(piece, _Native):
                self._native(frame, piece.first, piece.count, step, threads)
            else:
                self.run_torch(piece.step, frame, held)
        return self.result(frame, held)

    def begin(self, frame: Frame, inputs: Sequence[Tensor]) -> Held:
        """Gives a frame the inputs and memory for the outputs."""
        held: Held = {}
        for argument, number in self._given:
            held[number] = (inputs[argument], 0)
            frame.slots[self._slots[number]] = inputs[argument].data_ptr()
        for number, shape, strides, dtype in self._made:
            memory = torch.empty_strided(shape, strides, dtype=dtype)
            held[number] = (memory, 0)
            frame.slots[self._slots[number]] = memory.data_ptr()
        return held

    def result(self, frame: Frame, held: Held) -> Any:
        """What the network returns."""
        leaves = [
            self.tensor(leaf, frame, held) if isinstance(leaf, View) else leaf
            for leaf in self.trace.outputs
        ]
        return tuple(leaves) if self._is_tuple else tree_unflatten(leaves, self.trace.spec)

    def run_native(self, number: int, frame: Frame, step: int) -> None:
        """Runs one native operation, counted without those of torch."""
        self._native(frame, number, 1, step, torch.get_num_threads())

    def _native(self, frame: Frame, first: int, count: int, step: int, threads: int) -> None:
        at = self._ops_at + first * self._op_size
        if self._library.run(at, count, frame.slots, step, threads):
            raise ReplayFailed("an operation of the recorded step refused its operands")

    def run_torch(self, step: TorchStep, frame: Frame, held: Held) -> None:
        """Runs one operation of torch; what it makes is held.

        Raises:
            ReplayFailed: its result is not what was recorded.
        """
        operation = step.operation
        call = frame.calls.get(id(step))
        if call is None:
            call = frame.calls[id(step)] = self._call(operation, frame)
        args, kwargs, open_places = call
        for holder, name, view in open_places:
            holder[name] = self.tensor(view, frame, held)
        result = operation.function(*args, **kwargs)
        if operation.expected is not None and result != operation.expected:
            raise ReplayFailed("a value that its control flow depends on is another")
        results = result if isinstance(result, tuple | list) else (result,)
        for made, tensor in zip(operation.fresh, results, strict=False):
            if made is None:
                continue
            if (tensor.shape, tensor.stride()) != (made.shape, made.strides):
                raise ReplayFailed(f"{operation.name} gave another layout than when recorded")
            held[made.buffer] = (tensor, made.offset)
            frame.slots[self._slots[made.buffer]] = tensor.data_ptr() - made.offset

    def _call(self, operation: Operation, frame: Frame) -> _Call:
        """The arguments of an operation of torch, without those that lie outside the arena."""
        open_places: list[tuple[Any, Any, View]] = []

        def filled(holder: Any, name: Any, leaf: Any) -> Any:
            if isinstance(leaf, list | tuple):
                parts = list(leaf)
                for at, part in enumerate(leaf):
                    parts[at] = filled(parts, at, part)
                return parts
            if not isinstance(leaf, View):
                return leaf
            if self._slots[leaf.buffer] > _ARENA:
                open_places.append((holder, name, leaf))
                return None
            return self.tensor(leaf, frame, {})

        args: list[Any] = list(operation.args)
        for at, leaf in enumerate(operation.args):
            args[at] = filled(args, at, leaf)
        kwargs = dict(operation.kwargs)
        for name, leaf in operation.kwargs.items():
            kwargs[name] = filled(kwargs, name, leaf)
        return args, kwargs, open_places

    def tensor(self, view: View, frame: Frame, held: Held) -> Tensor:
        """A tensor at a view."""
        slot = self._slots[view.buffer]
        if slot > _ARENA:
            tensor, offset = held[view.buffer]
            whole = (tensor.shape, tensor.stride(), tensor.dtype, offset)
            if whole == (view.shape, view.strides, view.dtype, view.offset):
                return tensor
            return _within(tensor, view, -offset)
        if view not in frame.views:
            if slot == _ARENA:
                frame.views[view] = _within(frame.arena, view, self._offsets[view.buffer])
            else:
                constant = self.trace.buffers[view.buffer].tensor
                assert constant is not None
                frame.views[view] = bound(view, constant)
        return frame.views[view]


def _within(memory: Tensor, view: View, base: int) -> Tensor:
    """A view of memory that starts where ``memory`` does, plus ``base`` bytes."""
    if memory.dtype != view.dtype:
        whole = torch.empty(0, dtype=view.dtype).set_(memory.untyped_storage())  # type: ignore[call-overload]
    else:
        whole = memory
    start = memory.storage_offset() * memory.element_size() + base + view.offset
    return whole.as_strided(view.shape, view.strides, start // view.dtype.itemsize)


def _address(struct: Any) -> int | None:
    if struct is None:
        return None
    if isinstance(struct, bytes):
        return ctypes.cast(ctypes.c_char_p(struct), ctypes.c_void_p).value
    return ctypes.addressof(struct)
