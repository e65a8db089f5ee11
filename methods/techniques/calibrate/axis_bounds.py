"""Bounds of layer inputs and attention operands along both axes: positions and channels.

Source: DGQ (arXiv:2501.04304). An operand is a matrix of positions (tokens or output pixels) and
channels; DGQ groups the slices of the axis along which they differ more. Tables have one row for
each sampler call.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet, calls_of
from quantarena.methods.techniques.calibrate.bounds import Bounds
from quantarena.methods.techniques.calibrate.by_call import at_call, by_call, shared_inputs
from quantarena.methods.techniques.calibrate.watch import watch_inputs, watch_operands


@dataclass(frozen=True, slots=True)
class Axes:
    """Bounds of an operand's slices at every sampler call.

    Attributes:
        positions: bounds of tokens, or of the patches that a convolution's output pixels read,
            (S, positions); None where there are none, as for an input with one row a sample.
        channels: bounds of channels, (S, channels).
    """

    positions: Bounds | None
    channels: Bounds

    @property
    def whole(self) -> Bounds:
        """Bounds of the whole operand, (S, 1)."""
        low, high = self.channels.low, self.channels.high
        return Bounds(low.amin(1, keepdim=True), high.amax(1, keepdim=True))

    def pooled(self, reach: int) -> "Axes":
        """Bounds of each call pooled with those of ``reach`` calls before and after it.

        A few points of one call underestimate the range of its values; those of its neighbours
        are similar.
        """
        positions = None if self.positions is None else _pooled(self.positions, reach)
        return Axes(positions, _pooled(self.channels, reach))


@dataclass(slots=True)
class _Extremes:
    """Running bounds of one kind of slice, by sampler call."""

    by_call: dict[int, Bounds] = field(default_factory=dict)

    def add(self, call: int, x: Tensor, over: tuple[int, ...]) -> None:
        """Take in values of a call, with extremes taken over the axes ``over``."""
        present = Bounds(x.amin(over), x.amax(over))
        known = self.by_call.get(call)
        self.by_call[call] = present if known is None else known.merged(present)

    def table(
        self, calls: list[int], change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> Bounds:
        """Bounds of all calls, (S, slices), each call's passed through ``change``."""
        rows = [change(b.low, b.high) for b in (at_call(self.by_call, call) for call in calls)]
        low, high = zip(*rows, strict=True)
        return Bounds(torch.stack(low), torch.stack(high))


@torch.no_grad()
def axes_of_inputs(
    model: QuantizedModel, points: CalibrationSet, *, per_call: bool = True, batch: int = 0
) -> dict[str, Axes]:
    """Bounds of every layer's input along both axes, from one pass with quantized weights.

    Args:
        model: network whose layers have one part each.
        points: points to run; they must cover all calls where ``per_call``.
        per_call: separate bounds for each sampler call; else S is 1.
        batch: points of one forward pass; 0 as ``CalibrationSet.batches`` has it.

    Raises:
        ValueError: a sampler call without points, where ``per_call``.
    """
    calls = calls_of(points) if per_call else [0]
    shared = shared_inputs(model, points)
    channels: dict[str, _Extremes] = {}
    positions: dict[str, _Extremes] = {}

    def watch(name: str, layer: QuantLayer, x: Tensor, subset: CalibrationSet) -> None:
        axis = 1 if layer.is_conv else x.dim() - 1
        rest = tuple(d for d in range(x.dim()) if d != axis)
        for call, rows in by_call(x, subset, per_call and name not in shared):
            channels.setdefault(name, _Extremes()).add(call, rows, rest)
            if name in shared:  # its positions may be points
                continue
            if layer.spatial == 2 or (not layer.is_conv and x.dim() == 3):
                positions.setdefault(name, _Extremes()).add(call, rows, (0, axis))

    watch_inputs(model, points, watch, batch=batch)

    def position_table(name: str) -> Bounds | None:
        layer = model.layers[name]
        if name not in positions:
            return None
        return positions[name].table(calls, layer.window.bounds if layer.spatial == 2 else _as_is)

    return {
        name: Axes(position_table(name), extremes.table([0] if name in shared else calls, _as_is))
        for name, extremes in channels.items()
    }


def _as_is(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return low, high


@torch.no_grad()
def axes_of_products(
    model: QuantizedModel, points: CalibrationSet, *, per_call: bool = True, batch: int = 0
) -> dict[tuple[str, str], Axes]:
    """Bounds of queries, keys and values along both axes, by module path and operand.

    Bounds are taken over all heads, without excluded tokens. Arguments and errors are those of
    ``axes_of_inputs``.
    """
    calls = calls_of(points) if per_call else [0]
    extremes: dict[tuple[str, str], tuple[_Extremes, _Extremes]] = {}

    def watch(name: str, operand: str, x: Tensor, subset: CalibrationSet) -> None:
        if operand == "softmax":
            return
        rows, columns = extremes.setdefault((name, operand), (_Extremes(), _Extremes()))
        for call, part in by_call(x, subset, per_call):
            rows.add(call, part, (0, 1, 3))
            columns.add(call, part, (0, 1, 2))

    watch_operands(model, points, watch, batch=batch)
    return {
        key: Axes(rows.table(calls, _as_is), columns.table(calls, _as_is))
        for key, (rows, columns) in extremes.items()
    }


def _pooled(bounds: Bounds, reach: int) -> Bounds:
    low, high = (
        F.max_pool1d(values.T, 2 * reach + 1, 1, reach).T for values in (-bounds.low, bounds.high)
    )
    return Bounds(-low, high)
