"""Smallest and largest values of slices of layer inputs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet, calls_of
from quantarena.methods.techniques.calibrate.by_call import at_call, by_call, shared_inputs
from quantarena.methods.techniques.calibrate.watch import watch_inputs


@dataclass(frozen=True, slots=True)
class Bounds:
    """Smallest and largest values of every slice of a layer's input.

    Attributes:
        low: smallest values, (slices,), or (S, slices) by sampler call.
        high: largest values, same shape.
    """

    low: Tensor
    high: Tensor

    @property
    def absmax(self) -> Tensor:
        """Largest magnitude of each slice, over all calls, (slices,)."""
        most = torch.maximum(self.high.abs(), self.low.abs())
        return most if most.dim() == 1 else most.amax(0)

    def merged(self, other: "Bounds") -> "Bounds":
        """Bounds of the values of both."""
        return Bounds(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))


def channel_axis(layer: QuantLayer) -> int:
    """Axis of the channels in a layer's input."""
    return 1 if layer.is_conv else -1


def input_bounds(
    model: QuantizedModel,
    points: CalibrationSet,
    *,
    axes: Mapping[str, int] | None = None,
    per_call: bool = False,
    quantized_weights: bool = False,
    batch: int = 0,
) -> dict[str, Bounds]:
    """Bounds of each slice of every layer's input, from one pass over the points.

    Args:
        model: the network.
        points: points to run.
        axes: axis that is sliced, by layer; the channels where a layer is missing. Layers whose
            input has no such axis (tokens, -2, of a vector) are left out.
        per_call: separate bounds for each sampler call; the points must cover all calls.
        quantized_weights: run with quantized weights.
        batch: points of one forward pass; 0 as ``CalibrationSet.batches`` has it.

    Raises:
        ValueError: a sampler call without points, where ``per_call``.
    """
    calls = calls_of(points) if per_call else [0]
    shared = shared_inputs(model, points) if per_call else frozenset()
    bounds: dict[str, dict[int, Bounds]] = {}

    def watch(name: str, layer: QuantLayer, x: Tensor, subset: CalibrationSet) -> None:
        axis = (axes or {}).get(name, channel_axis(layer))
        if not -x.dim() < axis < x.dim() or axis == 0:
            return
        of_layer = bounds.setdefault(name, {})
        for call, rows in by_call(x, subset, per_call and name not in shared):
            slices = rows.movedim(axis, 0).flatten(1)
            present = Bounds(slices.amin(1), slices.amax(1))
            of_layer[call] = of_layer[call].merged(present) if call in of_layer else present

    watch_inputs(model, points, watch, quantized_weights=quantized_weights, batch=batch)
    if not per_call:
        return {name: of_layer[0] for name, of_layer in bounds.items()}
    return {
        name: Bounds(
            torch.stack([at_call(of_layer, call).low for call in calls]),
            torch.stack([at_call(of_layer, call).high for call in calls]),
        )
        for name, of_layer in bounds.items()
    }
