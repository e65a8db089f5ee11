"""Bounds along both axes of what layers and attention products read, and groups of similar slices.

Source: DGQ (arXiv:2501.04304). An operand is a matrix of positions (tokens, output pixels) and
channels; its groups lie along the axis whose slices differ more. Tables have one row for each
sampler call.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from quantarena.methods.core.affine import QuantParams, affine_params
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet, calls_of
from quantarena.methods.techniques.calibrate.bounds import Bounds
from quantarena.methods.techniques.calibrate.by_call import by_call
from quantarena.methods.techniques.calibrate.kmeans import kmeans
from quantarena.methods.techniques.calibrate.watch import watch_inputs, watch_operands


@dataclass(frozen=True, slots=True)
class Axes:
    """Bounds of an operand's slices at every sampler call.

    Attributes:
        positions: (S, positions) of tokens, or of the patches that a convolution's output pixels
            read; None where there are none, as for an input with one row a sample.
        channels: (S, channels).
    """

    positions: Bounds | None
    channels: Bounds

    @property
    def whole(self) -> Bounds:
        """Of the whole operand, (S, 1)."""
        low, high = self.channels.low, self.channels.high
        return Bounds(low.amin(1, keepdim=True), high.amax(1, keepdim=True))

    def pooled(self, reach: int) -> "Axes":
        """The bounds of each call together with those of ``reach`` calls before and after it.

        Few points at a call do not show how far its values go; its neighbours' are much alike.
        """
        positions = None if self.positions is None else _pooled(self.positions, reach)
        return Axes(positions, _pooled(self.channels, reach))


@dataclass(slots=True)
class _Extremes:
    """Running extremes of one kind of slice, by sampler call."""

    found: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def add(self, call: int, x: Tensor, over: tuple[int, ...]) -> None:
        low, high = x.amin(over), x.amax(over)
        if call in self.found:
            low = torch.minimum(low, self.found[call][0])
            high = torch.maximum(high, self.found[call][1])
        self.found[call] = low, high

    def table(
        self, calls: list[int], last: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> Bounds:
        rows = [last(*self.found[call]) for call in calls]
        low, high = zip(*rows, strict=True)
        return Bounds(torch.stack(low), torch.stack(high))


@torch.no_grad()
def axes_of_inputs(
    model: QuantizedModel, points: CalibrationSet, *, per_step: bool = True, batch: int = 64
) -> dict[str, Axes]:
    """Bounds of every layer's input along both axes, from one pass with quantized weights.

    Args:
        model: layers of one part each.
        points: to run on; where ``per_step`` they must cover all calls.
        per_step: each sampler call apart; else S is 1.
        batch: points run at once.

    Raises:
        ValueError: a sampler call without points, where ``per_step``.
    """
    calls = calls_of(points) if per_step else [0]
    channels: dict[str, _Extremes] = {}
    places: dict[str, _Extremes] = {}

    def watch(name: str, layer: QuantLayer, x: Tensor, subset: CalibrationSet) -> None:
        axis = 1 if layer.is_conv else x.dim() - 1
        rest = tuple(d for d in range(x.dim()) if d != axis)
        for call, rows in by_call(x, subset, per_step):
            channels.setdefault(name, _Extremes()).add(call, rows, rest)
            if layer.spatial == 2 or (not layer.is_conv and x.dim() == 3):
                places.setdefault(name, _Extremes()).add(call, rows, (0, axis))

    watch_inputs(model, points, watch, batch=batch)

    def positions(name: str) -> Bounds | None:
        layer = model.layers[name]
        if name not in places:
            return None
        return places[name].table(calls, layer.window.bounds if layer.spatial == 2 else _as_is)

    return {
        name: Axes(positions(name), found.table(calls, _as_is)) for name, found in channels.items()
    }


def _as_is(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return low, high


@torch.no_grad()
def axes_of_products(
    model: QuantizedModel, points: CalibrationSet, *, per_step: bool = True, batch: int = 64
) -> dict[tuple[str, str], Axes]:
    """Bounds of queries, keys and values along both axes, by module path and operand.

    All heads count together; excluded tokens do not count. Arguments and errors as of
    ``axes_of_inputs``.
    """
    calls = calls_of(points) if per_step else [0]
    found: dict[tuple[str, str], tuple[_Extremes, _Extremes]] = {}

    def watch(name: str, operand: str, x: Tensor, subset: CalibrationSet) -> None:
        if operand == "softmax":
            return
        rows, columns = found.setdefault((name, operand), (_Extremes(), _Extremes()))
        for call, part in by_call(x, subset, per_step):
            rows.add(call, part, (0, 1, 3))
            columns.add(call, part, (0, 1, 2))

    watch_operands(model, points, watch, batch=batch)
    return {
        key: Axes(rows.table(calls, _as_is), columns.table(calls, _as_is))
        for key, (rows, columns) in found.items()
    }


def spreads(bounds: Bounds) -> Tensor:
    """How far slices' bounds lie apart at each call, (S,): DGQ's D.

    ``(max M - min M) + (max m - min m)`` over slices with maxima ``M`` and minima ``m``.
    """
    return _range(bounds.low) + _range(bounds.high)


def groups_by_call(bounds: Bounds, groups: int, seed: int) -> Tensor:
    """Slices with similar bounds, at every call by themselves, (S, slices) below ``groups``."""
    calls, slices = bounds.low.shape
    if slices <= groups:
        return torch.arange(slices).expand(calls, slices)
    return kmeans(_relative(bounds), groups, seed)


def groups_of_all(bounds: Bounds, groups: int, seed: int) -> Tensor:
    """Slices whose bounds are similar at all calls together, (slices,), numbered without gaps.

    The bounds of each call count relative to the largest there, so no call outweighs another.
    """
    slices = bounds.low.shape[1]
    if slices <= groups:
        return torch.arange(slices)
    histories = _relative(bounds).permute(1, 0, 2).flatten(1)
    ids: Tensor = torch.unique(kmeans(histories[None], groups, seed)[0], return_inverse=True)[1]
    return ids


def group_params(bounds: Bounds, ids: Tensor, bits: int) -> QuantParams:
    """Min-max parameters of each group at each call, (S, G), covering all members.

    Args:
        bounds: of the slices.
        ids: group of each slice, (slices,) or (S, slices).
        bits: 1 to 8.

    Raises:
        ValueError: a bound is not finite.
    """
    calls, slices = bounds.low.shape
    place, count = ids.expand(calls, slices), int(ids.max()) + 1
    low, high = (torch.zeros(calls, count) for _ in range(2))  # zero is in every range
    low.scatter_reduce_(1, place, bounds.low.float(), "amin")
    high.scatter_reduce_(1, place, bounds.high.float(), "amax")
    return affine_params(low, high, bits, False)


def _pooled(bounds: Bounds, reach: int) -> Bounds:
    low, high = (
        F.max_pool1d(values.T, 2 * reach + 1, 1, reach).T for values in (-bounds.low, bounds.high)
    )
    return Bounds(-low, high)


def _relative(bounds: Bounds) -> Tensor:
    """(S, slices, 2) float64, the largest magnitude of each call 1."""
    points = torch.stack([bounds.low, bounds.high], dim=2).double()
    return points / points.abs().amax((1, 2), keepdim=True).clamp(min=1e-300)


def _range(values: Tensor) -> Tensor:
    """Largest less smallest of each row, (S,)."""
    return values.amax(1) - values.amin(1)
