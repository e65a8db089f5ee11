"""Bit-widths moved between a layer's output channels at an unchanged mean, by output error.

A channel's output depends on its own weights alone. So the errors of each channel at each width,
measured once, give the error of every assignment of widths without quantizing again.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.affine import fake_quantize
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.calibrate.bounds import channel_axis
from quantarena.methods.techniques.calibrate.watch import watch_inputs


def swapped_widths(scores: Tensor, bits: int, count: int) -> Tensor:
    """Widen the ``count`` channels with the highest scores by one bit, narrow as many others.

    Those with the lowest scores are narrowed.

    Args:
        scores: score of each channel, (O,).
        bits: width of all other channels, and of the mean.
        count: number of widened channels; at most half of all.

    Returns:
        Width of each channel, (O,) uint8; the mean is exactly ``bits``.

    Raises:
        ValueError: more than half of the channels.
    """
    if not 0 <= 2 * count <= len(scores):
        raise ValueError(f"{count} of {len(scores)} channels cannot be widened and as many not")
    order = scores.argsort(stable=True)
    widths = torch.full_like(order, bits, dtype=torch.uint8)
    widths[order[len(order) - count :]] = bits + 1
    widths[order[:count]] = bits - 1
    return widths


@torch.no_grad()
def channel_errors(
    model: QuantizedModel,
    points: CalibrationSet,
    names: Collection[str],
    search: RangeSearch,
    *,
    quantized_inputs: bool = True,
    batch: int = 32,
) -> dict[str, Tensor]:
    """Squared output error of each channel at three widths.

    The widths are the layer's own, one bit less and one bit more. The error is
    ``|X W - X^ W^|^2`` with quantized inputs X^, or ``|X W - X W^|^2``; everything before the layer
    is in floating point.

    Args:
        model: network whose layers have one part; activation ranges are set where inputs are
            quantized.
        points: points to run.
        names: layers of 2 to 7 bits.
        search: range search used at each width.
        quantized_inputs: quantize the layer's input; if false, its weight alone.
        batch: points of one forward pass.

    Returns:
        Errors by layer, (3, O).
    """
    candidates: dict[str, list[Tensor]] = {}
    for name in names:
        layer = model.layers[name]
        widths = (layer.bits.weight + delta for delta in (-1, 0, 1))
        candidates[name] = [
            fake_quantize(layer.weight, search(layer.weight, width, axis=0)) for width in widths
        ]
    errors: dict[str, Tensor] = {}

    def watch(name: str, layer: QuantLayer, x: Tensor, subset: CalibrationSet) -> None:
        if name not in candidates:
            return
        quantizer = layer.only_part.static if quantized_inputs else None
        quantized = x if quantizer is None else quantizer(x)
        target = layer.affine(x, layer.weight, None)
        gaps = (layer.affine(quantized, weight, None) - target for weight in candidates[name])
        axis = channel_axis(layer)
        squared = torch.stack([g.square().movedim(axis, 0).flatten(1).sum(1) for g in gaps])
        errors[name] = squared if name not in errors else errors[name] + squared

    watch_inputs(model, points, watch, quantized_weights=False, batch=batch)
    return errors


def best_swap(errors: Tensor, scores: Tensor, counts: Sequence[int]) -> tuple[int, Tensor]:
    """The number of swapped channels with the smallest output error; the first of equals.

    Args:
        errors: (3, O) from ``channel_errors``.
        scores: score of each channel, (O,), as for ``swapped_widths``.
        counts: candidates for the number.

    Returns:
        The best number, and the error of every candidate.
    """
    rows = (swapped_widths(scores, 1, count).long() for count in counts)  # 0, 1 or 2
    totals = torch.stack([errors.gather(0, row[None]).sum() for row in rows])
    return counts[int(totals.argmin())], totals


@dataclass(frozen=True, slots=True)
class Swap:
    """How many output channels of one layer were widened, and what that gained.

    Attributes:
        name: path of the layer.
        count: channels that got one bit more; as many got one bit less.
        channels: all output channels.
        errors: output error of every candidate count, the first of which is 0.
    """

    name: str
    count: int
    channels: int
    errors: Tensor

    @property
    def error(self) -> float:
        """Output error over that of equal widths."""
        return round(float(self.errors.min() / self.errors[0].clamp(min=1e-30)), 4)

    def note(self) -> dict[str, float]:
        """What happened, as plain data."""
        return {"widened": self.count, "channels": self.channels, "error": self.error}


def swap_widths(
    model: QuantizedModel,
    points: CalibrationSet,
    bits: int,
    search: RangeSearch,
    scores: Callable[[QuantLayer, Tensor], Tensor],
    counts: Callable[[int], Sequence[int]],
    *,
    quantized_inputs: bool = True,
) -> Iterator[Swap]:
    """Widen and narrow output channels of every layer of this width, at its mean, layer by layer.

    Weight ranges are to be found again afterwards where a count is not 0.

    Args:
        model: its layers have one part; activation ranges are set where inputs are quantized.
        points: points that output errors are found on.
        bits: width of the layers whose channels change; nothing changes from 8 bits up.
        search: finds the ranges at each width.
        scores: score of each channel from a layer and its errors, (3, O); the highest are widened.
        counts: candidates for the number of widened channels, from the number of channels.
        quantized_inputs: whether output errors include those of the layer's input.
    """
    names = [name for name, layer in model.layers.items() if layer.bits.weight == bits < 8]
    errors = channel_errors(model, points, names, search, quantized_inputs=quantized_inputs)
    for name in names:
        layer = model.layers[name]
        score = scores(layer, errors[name])
        count, totals = best_swap(errors[name], score, counts(len(score)))
        quantizer = layer.only_part.weight_quantizer
        if count and quantizer is not None:
            quantizer.set_bit_map(swapped_widths(score, bits, count))
        yield Swap(name, count, len(score), totals)
