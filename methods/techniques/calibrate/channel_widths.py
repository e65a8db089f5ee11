"""Bits moved between a layer's output channels at an unchanged mean, by their output errors.

A channel's output depends on its own weights alone. So its error at each width, found once, tells
the error of every assignment of widths; nothing is quantized again to compare them.
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
    """``count`` channels of the highest score one bit wider, as many of the lowest one narrower.

    Args:
        scores: (O,).
        bits: of all others, and of the mean.
        count: at most half of the channels.

    Returns:
        (O,) uint8, whose mean is exactly ``bits``.

    Raises:
        ValueError: more than half of the channels.
    """
    if not 0 <= 2 * count <= len(scores):
        raise ValueError(f"{count} of {len(scores)} channels cannot be widened and as many not")
    order = scores.argsort(stable=True)
    widths = torch.full((len(scores),), bits, dtype=torch.uint8)
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
    batch: int = 32,
) -> dict[str, Tensor]:
    """Squared output error of each channel at one bit less, the layer's own bits, and one more.

    ``|X W - X^ W^|^2`` with quantized inputs, everything before the layer in floating point.

    Args:
        model: activation ranges set; its layers have one part.
        points: to run on.
        names: layers of 2 to 7 bits.
        search: finds the ranges at each width.
        batch: points run at once.

    Returns:
        By layer, (3, O).
    """
    ladder: dict[str, list[Tensor]] = {}
    for name in names:
        layer = model.layers[name]
        widths = (layer.bits.weight + delta for delta in (-1, 0, 1))
        ladder[name] = [
            fake_quantize(layer.weight, search(layer.weight, width, axis=0)) for width in widths
        ]
    errors: dict[str, Tensor] = {}

    def watch(name: str, layer: QuantLayer, x: Tensor, subset: CalibrationSet) -> None:
        if name not in ladder:
            return
        quantizer = layer.only_part.static
        seen = x if quantizer is None else quantizer(x)
        target = layer.affine(x, layer.weight, None)
        gaps = (layer.affine(seen, weight, None) - target for weight in ladder[name])
        axis = channel_axis(layer)
        found = torch.stack([g.square().movedim(axis, 0).flatten(1).sum(1) for g in gaps])
        errors[name] = found if name not in errors else errors[name] + found

    watch_inputs(model, points, watch, quantized_weights=False, batch=batch)
    return errors


def best_swap(errors: Tensor, scores: Tensor, counts: Sequence[int]) -> tuple[int, Tensor]:
    """The count whose swap has the smallest output error; of equals the first.

    Args:
        errors: (3, O) as ``channel_errors`` gives them.
        scores: (O,), as for ``swapped_widths``.
        counts: candidates.

    Returns:
        The count, and the error of every candidate.
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
) -> Iterator[Swap]:
    """Widen and narrow output channels of every layer of this width, at its mean, layer by layer.

    Weight ranges are to be found again afterwards where a count is not 0.

    Args:
        model: activation ranges set; its layers have one part.
        points: points that output errors are found on.
        bits: width of the layers whose channels change; nothing changes from 8 bits up.
        search: finds the ranges at each width.
        scores: score of each channel from a layer and its errors, (3, O); the highest are widened.
        counts: candidates for the number of widened channels, from the number of channels.
    """
    names = [name for name, layer in model.layers.items() if layer.bits.weight == bits < 8]
    errors = channel_errors(model, points, names, search)
    for name in names:
        layer = model.layers[name]
        score = scores(layer, errors[name])
        count, totals = best_swap(errors[name], score, counts(len(score)))
        quantizer = layer.only_part.weight_quantizer
        if count and quantizer is not None:
            quantizer.set_bit_map(swapped_widths(score, bits, count))
        yield Swap(name, count, len(score), totals)
