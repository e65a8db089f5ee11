"""A range for each channel of a norm's output: searched, then its two ends learned (RepQuant).

The ranges are affine without the usual widening to contain zero: ``norm_fold`` moves the zero
points away, so a channel that lies apart from zero spends no codes on the way to it. Learning is
dual clipping (arXiv:2402.05628): a factor for the lower and one for the upper end of each channel,
towards the smallest error of what the readers make of the quantized input.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from quantarena.methods.core.affine import (
    SCALE_FLOOR,
    QuantParams,
    fake_quantize,
    fake_quantize_ste,
    round_ste,
)
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.calibrate.watch import watch_inputs

ROWS = 4096
"""Places kept of each input, and with them the two extremes of each channel."""


class Clips(NamedTuple):
    """Ends of each channel's range, both (K,), low below high."""

    low: Tensor
    high: Tensor

    def params(self, bits: int) -> QuantParams:
        """Scale and integer zero point of each channel, differentiable; z may lie off the codes."""
        scale = ((self.high - self.low) / (2**bits - 1)).clamp(min=SCALE_FLOOR)
        return QuantParams(scale, round_ste(-self.low / scale), bits)


def channel_rows(
    model: QuantizedModel, points: CalibrationSet, names: Collection[str]
) -> dict[str, Tensor]:
    """Inputs of some layers in full precision, channels last, (rows, K): a random sample of places.

    Args:
        model: layers whose input has channels last or, of a convolution, first.
        points: to run on.
        names: of the layers.
    """
    kept: dict[str, list[Tensor]] = {}
    ends: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, layer: QuantLayer, x: Tensor, subset: CalibrationSet) -> None:
        if name not in names:
            return
        rows = (x.movedim(1, -1) if layer.is_conv else x).flatten(0, -2)
        low, high = rows.amin(0), rows.amax(0)
        if name in ends:
            low, high = torch.minimum(low, ends[name][0]), torch.maximum(high, ends[name][1])
        ends[name] = low, high
        quota = -(-ROWS * len(subset) // len(points))
        if len(rows) > quota:
            generator = torch.Generator().manual_seed(len(kept.get(name, ())))
            rows = rows[torch.randperm(len(rows), generator=generator)[:quota]]
        kept.setdefault(name, []).append(rows)

    watch_inputs(model, points, watch, quantized_weights=False)
    return {name: torch.cat([*kept[name], torch.stack(ends[name])]) for name in kept}


def search_clips(rows: Tensor, bits: int, search: RangeSearch) -> Clips:
    """The range that ``search`` finds for each channel around its mean.

    Args:
        rows: (rows, K).
        bits: 1 to 8.
        search: takes one row a channel.
    """
    centre = rows.mean(0)
    found = search((rows - centre).T.contiguous(), bits, axis=0)
    scale, zero = found.scale.flatten(), found.zero_point.flatten()
    low = centre - zero * scale
    return Clips(low, low + (found.levels - 1) * scale)


def clip_error(rows: Tensor, gram: Tensor, clips: Clips, bits: int) -> float:
    """Mean squared error of the readers' outputs, (rows, K) inputs quantized by channel.

    Args:
        rows: the readers' input in full precision.
        gram: ``W^T W`` of all readers, (K, K).
        clips: ends of the ranges.
        bits: 1 to 8.
    """
    gap = fake_quantize(rows, clips.params(bits)) - rows
    return float(((gap @ gram) * gap).sum(1).mean())


def learn_clips(
    rows: Tensor,
    gram: Tensor,
    start: Clips,
    bits: int,
    *,
    steps: int,
    lr: float,
    seed: int,
    batch: int = 256,
) -> Clips:
    """Learn a factor for each end of each channel's range.

    An end is ``centre + 2 sigmoid(u) (end - centre)`` with u from 0, under Adam.

    Args:
        rows: the readers' input in full precision, (rows, K).
        gram: ``W^T W`` of all readers, (K, K); so the loss is that of their outputs.
        start: the ranges to start from.
        bits: 1 to 8.
        steps: of Adam.
        lr: its rate, falling to 0 as a cosine.
        seed: of the batches.
        batch: rows a step.

    Returns:
        The learned ends, or ``start`` where they are no better on all rows.
    """
    if not steps:
        return start
    centre = (start.low + start.high) / 2
    factors = torch.zeros(2, len(centre), requires_grad=True)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([factors], lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def clips() -> Clips:
        low, high = 2 * torch.sigmoid(factors)
        return Clips(centre + low * (start.low - centre), centre + high * (start.high - centre))

    for _ in range(steps):
        x = rows[torch.randint(len(rows), (min(batch, len(rows)),), generator=generator)]
        gap = fake_quantize_ste(x, clips().params(bits)) - x
        loss = ((gap @ gram) * gap).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()
    with torch.no_grad():
        learned = Clips(*(end.clone() for end in clips()))
        better = clip_error(rows, gram, learned, bits) < clip_error(rows, gram, start, bits)
    return learned if better else start
