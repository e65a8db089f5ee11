"""Groups calibration points and their values by sampler call."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quantarena.methods.core.record.points import CalibrationSet


def is_shared(x: Tensor, points: CalibrationSet) -> bool:
    """Whether an input belongs to all points: its rows cannot be shared out among them."""
    return bool(x.shape[0] % len(points))


def by_call(x: Tensor, points: CalibrationSet, per_call: bool) -> Iterator[tuple[int, Tensor]]:
    """Split the rows of ``x`` by sampler call; all rows come under call 0 if not ``per_call``.

    An input whose rows cannot be shared out among the points, such as a learned table, is the same
    at every call: all its rows come under each call of the points.
    """
    if not per_call:
        yield 0, x
        return
    if is_shared(x, points):
        for call in torch.unique(points.step):
            yield int(call), x
        return
    step = points.step.repeat_interleave(x.shape[0] // len(points))
    for call in torch.unique(step):
        yield int(call), x[step == call]
