"""Calibration points and values sorted by the sampler call that they belong to."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quantarena.methods.core.record.points import CalibrationSet


def by_call(x: Tensor, points: CalibrationSet, per_step: bool) -> Iterator[tuple[int, Tensor]]:
    """Rows of ``x`` by the sampler call that they belong to; all under 0 if not asked."""
    if not per_step:
        yield 0, x
        return
    step = points.step.repeat_interleave(x.shape[0] // len(points))
    for call in torch.unique(step):
        yield int(call), x[step == call]
