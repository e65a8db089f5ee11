"""What reaches each layer's quantizers on calibration points, and ranges found from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.points import calls_of
from quantarena.methods.core.record.trajectory import CalibrationSet
from quantarena.methods.techniques.calibrate.attention import calibrate_attention
from quantarena.methods.techniques.calibrate.by_call import by_call
from quantarena.methods.techniques.calibrate.row_sample import RowSample

_KEEP, _KEEP_CALL = 1 << 16, 1 << 12
"""Activation values kept of each part for range searches, in all and at least of each sampler call
where those have ranges of their own; extremes are always kept."""

Watch = Callable[[str, QuantLayer, Tensor, CalibrationSet], None]
"""Called with a layer's path, the layer, its input and the points that it comes from."""


@torch.no_grad()
def watch_inputs(
    model: QuantizedModel,
    points: CalibrationSet,
    watch: Watch,
    *,
    quantized_weights: bool = True,
    batch: int = 64,
) -> None:
    """Show every layer's input, multipliers applied, to ``watch``, in one pass over the points.

    Inputs are those of the network with floating-point activations; its weights are quantized or
    not as asked.
    """
    current = [points]

    def watcher(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(module, QuantLayer)
            watch(name, module, module.scaled(args[0]), current[0])

        return note

    handles = [layer.register_forward_pre_hook(watcher(n)) for n, layer in model.layers.items()]
    try:
        with model.using(weights=quantized_weights, acts=False):
            for subset in points.batches(batch):
                current[0] = subset
                model.run(subset)
    finally:
        for handle in handles:
            handle.remove()


def calibrate_activations(
    model: QuantizedModel,
    points: CalibrationSet,
    search: RangeSearch,
    *,
    symmetric: bool = False,
    quantized_weights: bool = True,
    per_step: bool = False,
    per_head: bool = False,
    batch: int = 64,
) -> None:
    """Set the static range of every layer's input, and of attention operands that are quantized.

    One pass over the calibration points, and one more where attention is quantized. Searches see
    the exact extremes and a random sample of the values, the same one in every run.

    Args:
        model: weight ranges set, if weights are to be quantized.
        points: to run on.
        search: finds each range.
        symmetric: zero points fixed in the middle of the codes.
        quantized_weights: run on quantized weights.
        per_step: a bank of ranges, one for each sampler call; the points must cover all calls.
        per_head: attention operands have a range for each head.
        batch: points run at once.

    Raises:
        ValueError: a sampler call without points, where ``per_step``.
    """
    calls = calls_of(points) if per_step else [0]
    count = -(-len(points) // batch)
    quota = max(_KEEP_CALL, _KEEP // len(calls)) if per_step else max(1024, _KEEP // count)
    found: dict[tuple[str, int], dict[int, RowSample]] = {}

    def watch(name: str, layer: QuantLayer, x: Tensor, subset: CalibrationSet) -> None:
        for index, part in enumerate(layer.parts):
            if part.static is not None:
                kept = found.setdefault((name, index), {})
                for call, rows in by_call(layer.part_input(part, x), subset, per_step):
                    kept.setdefault(call, RowSample(quota)).add(rows.reshape(1, -1))

    watch_inputs(model, points, watch, quantized_weights=quantized_weights, batch=batch)
    for (name, index), kept in found.items():
        quantizer = model.layers[name].parts[index].static
        assert quantizer is not None
        ranges = [
            search(kept[call].values()[0], quantizer.bits, symmetric=symmetric) for call in calls
        ]
        if per_step:
            scale = torch.stack([r.scale.reshape(()) for r in ranges])
            quantizer.set_bank(scale, torch.stack([r.zero_point.reshape(()) for r in ranges]))
        else:
            quantizer.set_params(ranges[0])
    if per_step:
        model.use_schedule(points)
    calibrate_attention(
        model,
        points,
        search,
        symmetric=symmetric,
        per_step=per_step,
        per_head=per_head,
        quantized_weights=quantized_weights,
        batch=batch,
    )


@dataclass(frozen=True, slots=True)
class Bounds:
    """Smallest and largest values of every slice of a layer's input.

    Attributes:
        low: (slices,), or (S, slices) by sampler call.
        high: same shape.
    """

    low: Tensor
    high: Tensor

    @property
    def absmax(self) -> Tensor:
        """Largest magnitude of each slice, over all calls, (slices,)."""
        most = torch.maximum(self.high.abs(), self.low.abs())
        return most if most.dim() == 1 else most.amax(0)


def channel_axis(layer: QuantLayer) -> int:
    """Where the channels of a layer's input are."""
    return 1 if layer.is_conv else -1


def input_bounds(
    model: QuantizedModel,
    points: CalibrationSet,
    *,
    axes: Mapping[str, int] | None = None,
    per_step: bool = False,
    quantized_weights: bool = False,
    batch: int = 64,
) -> dict[str, Bounds]:
    """Bounds of each slice of every layer's input, from one pass over the points.

    Args:
        model: its layers.
        points: to run on.
        axes: along which to slice, by layer; channels where it does not say. Layers whose input
            has no such axis (tokens, -2, of a vector) are left out.
        per_step: bounds of each sampler call apart; the points must cover all calls.
        quantized_weights: run on quantized weights.
        batch: points run at once.

    Raises:
        ValueError: a sampler call without points, where ``per_step``.
    """
    calls = calls_of(points) if per_step else [0]
    kept: dict[str, dict[int, Bounds]] = {}

    def watch(name: str, layer: QuantLayer, x: Tensor, subset: CalibrationSet) -> None:
        axis = (axes or {}).get(name, channel_axis(layer))
        if not -x.dim() < axis < x.dim() or axis == 0:
            return
        seen = kept.setdefault(name, {})
        for call, rows in by_call(x, subset, per_step):
            slices = rows.movedim(axis, 0).flatten(1)
            low, high = slices.amin(1), slices.amax(1)
            if call in seen:
                low = torch.minimum(low, seen[call].low)
                high = torch.maximum(high, seen[call].high)
            seen[call] = Bounds(low, high)

    watch_inputs(model, points, watch, quantized_weights=quantized_weights, batch=batch)
    if not per_step:
        return {name: seen[0] for name, seen in kept.items()}
    return {
        name: Bounds(
            torch.stack([seen[call].low for call in calls]),
            torch.stack([seen[call].high for call in calls]),
        )
        for name, seen in kept.items()
    }
