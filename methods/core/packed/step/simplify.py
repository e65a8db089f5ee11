"""What a recorded step need not do again: constants, copies of values that are there already.

Every rule keeps each remaining value as it was, bit for bit.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from quantarena.methods.core.packed.step.trace import Operation, Trace, View

aten = torch.ops.aten
MOST_FOLDED = 1 << 16
"""Elements of a constant that is computed once; larger ones would be memory that nobody counts."""
_RANDOM = torch.Tag.nondeterministic_seeded


@dataclass(slots=True)
class Usage:
    """How often each buffer is written and read."""

    writes: Counter[int]
    reads: Counter[int]

    @classmethod
    def of(cls, trace: Trace) -> "Usage":
        """Of a trace, whose outputs count as read."""
        usage = cls(Counter(), Counter())
        for operation in trace.operations:
            usage.writes.update({view.buffer for view in operation.writes})
            usage.reads.update({view.buffer for view in operation.reads})
        usage.reads.update({leaf.buffer for leaf in trace.outputs if isinstance(leaf, View)})
        return usage


def simplify(trace: Trace) -> None:
    """Drops operations from a trace, in place."""
    _drop_repeats(trace)  # first, so that equal constants are one
    _fold(trace)
    _drop_identities(trace)
    _drop_repeats(trace)
    _drop_unused(trace)


def bound(view: View, tensor: Tensor) -> Tensor:
    """A view of memory in which ``tensor`` lies at its start or wherever its storage is."""
    whole = torch.empty(0, dtype=view.dtype).set_(tensor.untyped_storage())  # type: ignore[call-overload]
    at = view.offset // view.dtype.itemsize
    return whole.as_strided(view.shape, view.strides, at)


def _pure(operation: Operation) -> bool:
    """Whether it only makes new tensors from its arguments."""
    function = operation.function
    if function is None or function._schema.is_mutable or _RANDOM in function.tags:
        return False
    return bool(operation.fresh) and all(view is not None for view in operation.fresh)


def _fold(trace: Trace) -> None:
    """Runs what depends on nothing: ``arange`` and what is computed from it."""
    usage, kept = Usage.of(trace), []
    made: set[int] = set()
    for operation in trace.operations:
        small = all(view.numel <= MOST_FOLDED for view in operation.writes)
        once = all(usage.writes[view.buffer] == 1 for view in operation.writes)
        if not (_pure(operation) and small and once) or any(
            view.buffer not in made for view in operation.reads
        ):
            kept.append(operation)
            continue

        def value(leaf: Any) -> Any:
            if not isinstance(leaf, View):
                return leaf
            tensor = trace.buffers[leaf.buffer].tensor
            assert tensor is not None
            return bound(leaf, tensor)

        args, kwargs = (tree_map(value, part) for part in (operation.args, operation.kwargs))
        result = operation.function(*args, **kwargs)
        results = result if isinstance(result, tuple | list) else (result,)
        for view, tensor in zip(operation.writes, results, strict=True):
            trace.buffers[view.buffer].tensor = tensor
            made.add(view.buffer)
    trace.operations = kept


def _drop_identities(trace: Trace) -> None:
    """Products with 1 and quotients by 1."""
    usage = Usage.of(trace)
    kept = []
    for operation in trace.operations:
        source = _identity(operation, trace)
        if source is not None and _same_place(source, operation.writes[0], usage):
            _move(trace, operation.writes[0], source)
            continue
        kept.append(operation)
    trace.operations = kept


def _identity(operation: Operation, trace: Trace) -> View | None:
    """The argument that is the result."""
    if operation.function not in (aten.mul.Tensor, aten.div.Tensor):
        return None
    first, second = operation.args
    for one, other in ((first, second), (second, first)):
        if not isinstance(one, View) or one.dtype != operation.writes[0].dtype:
            continue
        if operation.function is aten.div.Tensor and one is not first:
            continue
        if isinstance(other, View):
            tensor = trace.buffers[other.buffer].tensor
            made = tensor is not None and trace.buffers[other.buffer].input < 0
            if made and other.numel <= MOST_FOLDED and other.shape == one.shape:
                assert tensor is not None
                if not isinstance(tensor, torch.nn.Parameter) and _ones(other, tensor):
                    return one
        elif other == 1:
            return one
    return None


def _ones(view: View, tensor: Tensor) -> bool:
    return bool((bound(view, tensor) == 1).all())


def _same_place(source: View, result: View, usage: Usage) -> bool:
    """Whether what reads the result may read the source: same layout, and neither is changed."""
    same = (source.shape, source.strides, source.dtype) == (
        result.shape,
        result.strides,
        result.dtype,
    )
    return same and usage.writes[source.buffer] <= 1 and usage.writes[result.buffer] == 1


def _move(trace: Trace, old: View, new: View) -> None:
    """Makes all views of one buffer views of another; in it, ``old`` lies where ``new`` is."""
    shift = new.offset - old.offset

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, View) and leaf.buffer == old.buffer:
            return replace(leaf, buffer=new.buffer, offset=leaf.offset + shift)
        return leaf

    for operation in trace.operations:
        rename(operation, moved)
    trace.outputs = [moved(leaf) for leaf in trace.outputs]


def rename(operation: Operation, moved: Any) -> None:
    """Applies a function to every view of an operation."""
    for name in ("args", "kwargs"):
        setattr(operation, name, tree_map(moved, getattr(operation, name)))
    for name in ("reads", "writes", "operands", "fresh"):
        setattr(operation, name, tuple(moved(view) for view in getattr(operation, name)))


def _drop_repeats(trace: Trace) -> None:
    """The same operation on the same values."""
    usage, kept = Usage.of(trace), []
    seen: dict[str, Operation] = {}
    for operation in trace.operations:
        steady = all(usage.writes[view.buffer] <= 1 for view in operation.reads)
        once = all(usage.writes[view.buffer] == 1 for view in operation.writes)
        if (_pure(operation) or _copies(operation)) and steady and once:
            key = repr((operation.name, _asked(operation), operation.kwargs))
            first = seen.setdefault(key, operation)
            if first is not operation:
                for old, new in zip(operation.writes, first.writes, strict=True):
                    _move(trace, old, new)
                continue
        kept.append(operation)
    trace.operations = kept


def _copies(operation: Operation) -> bool:
    """Whether it fills new memory with a copy."""
    return operation.function is aten.copy_.default


def _asked(operation: Operation) -> tuple[Any, ...]:
    """The arguments, with the layout of the memory that a copy fills instead of its name."""
    if not _copies(operation):
        return operation.args
    to, *others = operation.args
    return (replace(to, buffer=-1), *others)


def _drop_unused(trace: Trace) -> None:
    """Operations whose results nobody reads."""
    needed = {leaf.buffer for leaf in trace.outputs if isinstance(leaf, View)}
    kept = []
    for operation in reversed(trace.operations):
        stays = operation.function is not None and _RANDOM in operation.function.tags
        stays = stays or operation.expected is not None
        if stays or any(view.buffer in needed for view in operation.writes):
            needed.update(view.buffer for view in operation.reads)
            kept.append(operation)
    trace.operations = kept[::-1]
