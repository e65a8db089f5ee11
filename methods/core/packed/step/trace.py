"""One call of a network as the operations that ran in it, on named memory.

A dispatch mode sees torch's operations; native calls tell of themselves (``kernels.observer``).
Views are no operations: they are part of the operands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.kernels.observer import Kind, NativeOperation, here
from quantarena.methods.core.packed.nodes.fusion import Watched, plain


class NotRecordable(QuantArenaError):
    """A step that a recording cannot hold; the message says why."""


@dataclass(frozen=True, slots=True)
class View:
    """Where a tensor lies.

    Attributes:
        buffer: number of the memory.
        offset: in bytes.
        shape: as of the tensor.
        strides: in elements.
        dtype: of the elements.
    """

    buffer: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()

    def dense(self) -> bool:
        """Whether it is row-major without gaps."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True


@dataclass(slots=True)
class Buffer:
    """One piece of memory.

    Attributes:
        size: in bytes.
        tensor: a tensor in it that is there before the step: a weight, or an input. None where the
            step makes it.
        input: number of the argument, or -1.
    """

    size: int
    tensor: Tensor | None = None
    input: int = -1


@dataclass(slots=True)
class Operation:
    """One operation of torch, or one native call.

    Attributes:
        function: of torch; None for a native call.
        args: with a view in place of each tensor.
        kwargs: the same.
        native: the native call.
        reads: views that are read.
        writes: views that are written; those of a native call in the order of its operands.
        operands: of a native call, by position.
        fresh: of torch: views of the results, if they are in memory of their own.
        expected: truth value that came back to Python, on which control flow may depend.
    """

    function: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    native: NativeOperation | None = None
    reads: tuple[View, ...] = ()
    writes: tuple[View, ...] = ()
    operands: tuple[View | None, ...] = ()
    fresh: tuple[View | None, ...] = ()
    expected: bool | None = None

    @property
    def name(self) -> str:
        """As people read it."""
        return self.native.kind.name.lower() if self.native else str(self.function)


@dataclass(slots=True)
class Trace:
    """The operations of one call.

    Attributes:
        operations: in order.
        buffers: all memory that they touch.
        outputs: leaves of the result: views, and constants.
        spec: structure of the result.
        read_values: constants whose values were read in Python.
    """

    operations: list[Operation]
    buffers: list[Buffer]
    outputs: list[Any]
    spec: Any
    read_values: list[Tensor]


_WRITTEN = {
    Kind.LAYER: (1,),
    Kind.GROUPS: (1,),
    Kind.NORM: (1,),
    Kind.ACTIVATION: (2,),
    Kind.EXTREMES: (1, 2),
    Kind.ATTENTION: (4, 5),
    Kind.ROTATION: (1,),
}
_ALLOCATES = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})
_ACCUMULATE = 1
LAYERS = frozenset({Kind.LAYER, Kind.GROUPS})
"""Kinds whose flags are ``QaFlags``."""


class Recorder(TorchDispatchMode):
    """Records what runs on the calling thread while it is entered.

    Args:
        inputs: tensors that change from call to call, each in memory of its own or shared.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.buffers: list[Buffer] = []
        self.read_values: list[Tensor] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # a storage's address is not used again while one refers to it
        for number, tensor in enumerate(inputs):
            self._number(tensor, tensor, number)

    def __enter__(self) -> "Recorder":
        here.tell = self._native
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        here.tell = None
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def done(self, result: Any) -> Trace:
        """The trace of a call that returned ``result``."""
        leaves, spec = tree_flatten(result)
        outputs = [self.view(x) if isinstance(x, Tensor) else x for x in leaves]
        for leaf in outputs:
            if isinstance(leaf, View) and self.buffers[leaf.buffer].tensor is not None:
                raise NotRecordable("it returns one of its inputs or weights as it is")
            if not isinstance(leaf, View | int | float | str | None):
                raise NotRecordable(f"it returns a {type(leaf).__name__}")
        return Trace(self.operations, self.buffers, outputs, spec, self.read_values)

    def view(self, tensor: Tensor) -> View:
        """Where a tensor lies; memory that was never seen belongs to a constant."""
        number = self._number(tensor, tensor)
        offset = int(tensor.storage_offset()) * tensor.element_size()
        strides = tuple(map(int, tensor.stride()))
        return View(number, offset, tuple(tensor.shape), strides, tensor.dtype)

    def _number(self, tensor: Tensor, constant: Tensor | None, argument: int = -1) -> int:
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise NotRecordable(f"it has a tensor on {tensor.device} of layout {tensor.layout}")
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._numbers:
            self._kept.append(StorageWeakRef(storage))  # type: ignore[no-untyped-call]
            self._numbers[key] = len(self.buffers)
            self.buffers.append(Buffer(storage.nbytes(), constant, argument))
        return self._numbers[key]

    def _known(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._numbers

    def _native(self, call: NativeOperation) -> None:
        operands = tuple(None if x is None else self.view(x) for x in call.operands)
        for x in call.fixed:
            if x is not None and self._known(x) and not self._constant(self.view(x)):
                raise NotRecordable(f"parameters of a native {call.kind.name} change in each call")
        written = _WRITTEN[call.kind]
        adds = call.kind in LAYERS and call.flags & _ACCUMULATE
        reads = (x for i, x in enumerate(operands) if i not in written or adds or i == 4)
        writes = (operands[i] for i in written)
        self.operations.append(
            Operation(
                native=call,
                operands=operands,
                reads=tuple(x for x in reads if x is not None),
                writes=tuple(x for x in writes if x is not None),
            )
        )

    def _constant(self, view: View) -> bool:
        buffer = self.buffers[view.buffer]
        return buffer.tensor is not None and buffer.input < 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs and records one operation."""
        args, kwargs = _unwatched(args), _unwatched(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        views = [self.view(x) for x in tensors]
        self._refuse(func, views, tensors)
        result = func(*args, **kwargs)
        if isinstance(result, bool) and not all(self._constant(view) for view in views):
            self.operations.append(
                Operation(function=func, args=tuple(views), reads=tuple(views), expected=result)
            )
        leaves = [x for x in tree_flatten(result)[0] if isinstance(x, Tensor)]
        changed = self._changed(func, args, kwargs)
        fresh = [x for x in leaves if not self._known(x)]
        for x in fresh:
            self._number(x, None)
        if (fresh and func._overloadpacket.__name__ not in _ALLOCATES) or changed:
            views_of = tree_map(
                lambda x: self.view(x) if isinstance(x, Tensor) else x, (args, kwargs)
            )
            results = tuple(self.view(x) if any(x is f for f in fresh) else None for x in leaves)
            made = [view for view in results if view is not None]
            self.operations.append(
                Operation(
                    function=func,
                    args=views_of[0],
                    kwargs=views_of[1],
                    reads=tuple(views),
                    writes=(*made, *changed),
                    fresh=results,
                )
            )
        return result

    def _refuse(self, func: Any, views: list[View], tensors: list[Tensor]) -> None:
        """Refuses numbers that come back to Python, and results whose size depends on values."""
        name = func._overloadpacket.__name__
        if torch.Tag.data_dependent_output in func.tags:
            truth = name == "_local_scalar_dense" and tensors[0].dtype == torch.bool
            if not truth and not all(self._constant(view) for view in views):
                raise NotRecordable(f"its control flow depends on values ({name})")
            self.read_values += tensors
        by_mask = any(x.dtype == torch.bool for x in tensors[1:]) and name.startswith("index")
        if torch.Tag.dynamic_output_shape in func.tags and (by_mask or name != "index"):
            raise NotRecordable(f"sizes in it depend on values ({name})")

    def _changed(self, func: Any, args: Any, kwargs: Any) -> list[View]:
        """What an operation writes to among its arguments."""
        if not func._schema.is_mutable:
            return []
        found = []
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            found += [x for x in tree_flatten(value)[0] if isinstance(x, Tensor)]
        views = [self.view(x) for x in found]
        if any(self.buffers[view.buffer].tensor is not None for view in views):
            raise NotRecordable("it writes to its inputs or weights")
        return views


def _unwatched(tree: Any) -> Any:
    return tree_map(lambda x: plain(x) if type(x) is Watched else x, tree)
