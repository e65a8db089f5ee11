"""Ranges for each channel of a norm's output, searched and then learned (RepQuant's dual clipping).

Unlike others, these ranges are not widened to contain zero: ``norm_fold`` moves the zero points
away, so a channel whose values lie far from zero wastes no codes. Dual clipping (arXiv:2402.05628)
learns one factor for the lower and one for the upper end of each channel, so that the layers that
read the quantized input have the smallest output error.
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
from quantarena.methods.techniques.calibrate.row_sample import RowSample
from quantarena.methods.techniques.calibrate.watch import watch_inputs

ROWS = 4096
"""Largest number of positions (tokens or pixels) sampled from each input; each channel's extremes
come on top where there are more."""


class Clips(NamedTuple):
    """Lower and upper ends of the channels' ranges, both (K,)."""

    low: Tensor
    high: Tensor

    def params(self, bits: int) -> QuantParams:
        """Scale and integer zero point of each channel, differentiable.

        The zero point may lie outside the codes.
        """
        scale = ((self.high - self.low) / (2**bits - 1)).clamp(min=SCALE_FLOOR)
        return QuantParams(scale, round_ste(-self.low / scale), bits)


def channel_rows(
    model: QuantizedModel, points: CalibrationSet, names: Collection[str]
) -> dict[str, Tensor]:
    """Random sample of the full-precision inputs of some layers, channels last, (rows, K).

    Args:
        model: the network.
        points: points to run.
        names: paths of layers whose input has channels last, or of convolutions.
    """
    samples: dict[str, RowSample] = {}

    def watch(name: str, layer: QuantLayer, x: Tensor, subset: CalibrationSet) -> None:
        if name not in names:
            return
        rows = (x.movedim(1, -1) if layer.is_conv else x).flatten(0, -2)
        samples.setdefault(name, RowSample(ROWS)).add(rows.T)

    watch_inputs(model, points, watch, quantized_weights=False)
    return {name: sample.values().T for name, sample in samples.items()}


def search_clips(rows: Tensor, bits: int, search: RangeSearch) -> Clips:
    """Search a range for each channel after subtracting the channel's mean.

    Args:
        rows: sampled inputs, (rows, K).
        bits: 1 to 8.
        search: range search.
    """
    centre = rows.mean(0)
    params = search((rows - centre).T.contiguous(), bits, axis=0)
    scale, zero = params.scale.flatten(), params.zero_point.flatten()
    low = centre - zero * scale
    return Clips(low, low + (params.levels - 1) * scale)


def clip_error(rows: Tensor, gram: Tensor, clips: Clips, bits: int) -> float:
    """Mean squared output error of the reading layers, with their input quantized by channel.

    Args:
        rows: full-precision input of the reading layers, (rows, K).
        gram: sum of ``W^T W`` over these layers, (K, K).
        clips: ends of the channels' ranges.
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
    """Learn a factor for each end of each channel's range with Adam.

    An end is ``centre + 2 sigmoid(u) (end - centre)`` with u starting at 0.

    Args:
        rows: full-precision input of the reading layers, (rows, K).
        gram: sum of ``W^T W`` over these layers, (K, K), which turns input errors into output
            errors.
        start: initial ranges.
        bits: 1 to 8.
        steps: number of optimizer steps.
        lr: learning rate, which falls to 0 along a cosine.
        seed: seed of the batches.
        batch: rows of one step.

    Returns:
        The learned ends, or ``start`` where these are no better on all rows.
    """
    if not steps:
        return start
    centre = (start.low + start.high) / 2
    factors = torch.zeros(2, len(centre), device=centre.device, requires_grad=True)
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
