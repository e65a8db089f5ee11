"""Answers questions about a recorded forward pass that decide the roles of layers.

Only which operation feeds which is used, no class and no attribute names. Each rule is explained at
its method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from quantarena.methods.core.trace.operation import Op, OpKind, same_values
from quantarena.methods.core.trace.operations import OperationRecorder, QuantizableModule

_BARRIERS = {OpKind.SOFTMAX, OpKind.PRODUCT, OpKind.SOURCE}
"""Operations behind which a layer's result counts as a new stream."""
_NONE: frozenset[int] = frozenset()


@dataclass(slots=True)
class _Streams:
    """What reaches each operation, with one entry for each operation.

    Attributes:
        sample: whether the noisy sample reaches it.
        feeds: layers or attention whose result it still holds, in another shape or scale.
        loose: layers that reach it through anything but another layer.
        raw: layers that reach it with no nonlinearity in between.
        active: layers that reach it with a nonlinearity in between.
        resized: whether it is an upsampled image.
    """

    sample: list[bool] = field(default_factory=list)
    feeds: list[frozenset[int]] = field(default_factory=list)
    loose: list[frozenset[int]] = field(default_factory=list)
    raw: list[frozenset[int]] = field(default_factory=list)
    active: list[frozenset[int]] = field(default_factory=list)
    resized: list[bool] = field(default_factory=list)


class RoleReader:
    """Answers questions about a recorded forward pass.

    Args:
        recorder: recording of one forward pass.
        sample: index of the noisy sample's operation.
        batch: number of images in the pass.
        layers: the network's convolutions and linears by path.
    """

    def __init__(
        self,
        recorder: OperationRecorder,
        sample: int,
        batch: int,
        layers: Mapping[str, QuantizableModule],
    ) -> None:
        self.ops, self.batch, self.layers = recorder.ops, batch, layers
        self._reach = _Streams()
        for index, op in enumerate(self.ops):
            self._spread(index, op, index == sample)
        self.runs: dict[str, list[int]] = {}  # operations of each layer
        for index, op in enumerate(self.ops):
            if op.kind is OpKind.LAYER:
                self.runs.setdefault(op.name, []).append(index)

    def _spread(self, index: int, op: Op, is_sample: bool) -> None:
        """Add the entries of one operation."""
        reach, inputs = self._reach, op.inputs
        reach.sample.append(is_sample or any(reach.sample[i] for i in inputs))
        reach.resized.append(
            op.kind is OpKind.RESIZE
            or (op.kind is OpKind.OTHER and any(reach.resized[i] for i in inputs))
        )
        itself = frozenset({index})
        if op.kind is OpKind.LAYER:
            feeds, loose, raw, active = itself, itself, itself, _NONE
        else:
            feeds = itself if op.kind is OpKind.ATTENTION else self._feeds(op)
            loose = _union(reach.loose, inputs)
            raw, active = self._activity(op)
        reach.feeds.append(feeds)
        reach.loose.append(loose)
        reach.raw.append(raw)
        reach.active.append(active)

    def _feeds(self, op: Op) -> frozenset[int]:
        """Layers whose result an operation holds.

        A concatenation holds those of all its parts; a sum of two different streams is a new one.
        """
        if op.kind in _BARRIERS:
            return _NONE
        if op.kind is OpKind.CONCAT:
            return _union(self._reach.feeds, op.inputs)
        streams = {self._reach.feeds[i] for i in op.inputs} - {_NONE}
        return streams.pop() if len(streams) == 1 else _NONE

    def _activity(self, op: Op) -> tuple[frozenset[int], frozenset[int]]:
        raw, active = _union(self._reach.raw, op.inputs), _union(self._reach.active, op.inputs)
        if op.kind in _BARRIERS | {OpKind.NORM, OpKind.ATTENTION}:
            return _NONE, _NONE
        if op.kind is OpKind.ADD and len(op.inputs) > 1:
            return _NONE, _NONE
        if op.kind is OpKind.NONLINEAR or (op.kind is OpKind.MUL and active):
            return _NONE, raw | active  # a gate's other factor is part of it
        return raw, active

    def sees_sample(self, path: str) -> bool:
        """Whether the layer's input depends on the noisy sample."""
        return any(self._reach.sample[index] for index in self.runs[path])

    def conditioning(self, path: str) -> bool:
        """Whether the layer's input has one row for each image and nothing of the sample in it."""
        shape = self.ops[self.runs[path][0]].shape
        rows = len(shape) == 2 or (len(shape) == 3 and shape[1] == 1)
        return rows and shape[0] in {1, self.batch} and not self.sees_sample(path)

    def names(self, operations: frozenset[int]) -> tuple[str, ...]:
        """Paths of the layers among these operations, in execution order."""
        paths = (self.ops[i].name for i in sorted(operations) if self.ops[i].kind is OpKind.LAYER)
        return tuple(dict.fromkeys(paths))

    def feeding(self, index: int | None) -> tuple[str, ...]:
        """Paths of the layers whose output an operation's result still holds."""
        return () if index is None else self.names(self._reach.feeds[index])

    def inputs(self, path: str) -> tuple[int, ...]:
        """The operations that made the layer's inputs."""
        return tuple(i for index in self.runs[path] for i in self.ops[index].inputs)

    def splits(self, path: str) -> tuple[int, ...]:
        """Channel widths of the concatenated parts of the sample's stream that the layer reads.

        Empty where its input is no such concatenation.
        """
        for index in self.inputs(path):
            op = self.ops[same_values(self.ops, index)]
            shape = self.ops[self.runs[path][0]].shape
            axis = len(shape) - 1 if isinstance(self.layers[path], nn.Linear) else 1
            if op.kind is OpKind.CONCAT and op.axis == axis and len(op.inputs) == len(op.parts) > 1:
                streams = all(self._reach.sample[i] for i in op.inputs)
                return op.parts if streams and op.shape == shape else ()
        return ()

    def modulating(self) -> dict[str, bool]:
        """Conditioning layers that scale or shift a larger tensor; True where it holds tokens."""
        modulating: dict[str, bool] = {}
        for op in self.ops:
            if op.kind not in {OpKind.MUL, OpKind.ADD} or len(op.inputs) != 2:
                continue
            for small, large in (op.inputs, op.inputs[::-1]):
                vector, stream = self.ops[small].shape, self.ops[large].shape
                makers = self._reach.loose[small] - self._reach.loose[large]
                if self._reach.sample[small] or len(stream) < 3 or _size(vector) >= _size(stream):
                    continue
                modulating |= dict.fromkeys(self.names(makers), len(stream) == 3)
        return modulating

    def embedding(self) -> set[str]:
        """Conditioning layers that feed other conditioning layers."""
        inner = [path for path in self.runs if self.conditioning(path)]
        sources = (self._reach.loose[i] for path in inner for i in self.inputs(path))
        return {name for operations in sources for name in self.names(operations)}

    def attended(self, path: str) -> bool:
        """Whether the layer reads the result of attention."""
        return any(
            self.ops[source].kind is OpKind.ATTENTION
            for index in self.inputs(path)
            for source in self._reach.feeds[index]
        )

    def feedforward(self) -> set[str]:
        """Pairs of position-wise layers with a nonlinearity but no norm or sum in between."""
        paired: set[str] = set()
        for path in self.runs:
            if not pointwise(self.layers[path]) or not self.sees_sample(path):
                continue
            for index in self.inputs(path):
                partners = self.names(self._reach.active[index])
                if partners and all(pointwise(self.layers[p]) for p in partners):
                    paired |= {path, *(p for p in partners if self.sees_sample(p))}
        return paired

    def shortcuts(self) -> set[str]:
        """Layers whose output is added to that of a longer path from the same input.

        The longer path must not pass through the layer itself, else the layer is the first one of
        a residual branch.
        """
        shortcuts: set[str] = set()
        for op in self.ops:
            if op.kind is not OpKind.ADD or len(op.inputs) != 2:
                continue
            ends = [self._reach.feeds[i] for i in op.inputs]
            if any(len(end) != 1 for end in ends):
                continue
            one, other = (next(iter(end)) for end in ends)
            if not (self._reach.sample[one] and self._reach.sample[other]):
                continue
            for short, long in ((one, other), (other, one)):
                if self.ops[short].kind is OpKind.LAYER and self._around(short, long):
                    shortcuts.add(self.ops[short].name)
        return shortcuts

    def _around(self, short: int, long: int) -> bool:
        """Whether the input of ``short`` reaches the input of ``long`` without ``short``."""
        targets, waiting = set(self.ops[short].inputs), list(self.ops[long].inputs)
        if targets & set(waiting) or self.ops[long].kind is not OpKind.LAYER:
            return False
        visited = {short}
        while waiting:
            index = waiting.pop()
            if index in targets:
                return True
            if index not in visited:
                visited.add(index)
                waiting += [i for i in self.ops[index].inputs if i >= min(targets)]
        return False

    def upsampled(self, path: str) -> bool:
        """Whether the layer reads an upsampled image."""
        return any(self._reach.resized[i] for i in self.inputs(path))

    def last(self, outputs: Sequence[int]) -> str:
        """The layer that makes the network's output."""
        loose = _union(self._reach.loose, outputs)
        return self.names(loose)[-1] if loose else list(self.runs)[-1]


def _union(table: list[frozenset[int]], indices: Sequence[int]) -> frozenset[int]:
    return _NONE.union(*(table[i] for i in indices))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def pointwise(layer: QuantizableModule) -> bool:
    """Whether a layer sees one position at a time."""
    return isinstance(layer, nn.Linear) or max(*layer.kernel_size, *layer.stride) == 1
