"""Groups calibration points and their values by sampler call."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quantarena.methods.core.clock import CallSchedule
from quantarena.methods.core.record.points import CalibrationSet


def bank_schedule(points: CalibrationSet) -> CallSchedule:
    """The sampler calls that a bank of ranges found on these points has entries for."""
    calls = calls_of(points)
    if points.schedule is not None:
        return points.schedule
    times = [float(points.timestep[points.step == call][0]) for call in calls]
    return CallSchedule("", tuple(times))


def calls_of(points: CalibrationSet) -> list[int]:
    """The sampler calls of the points, 0 to S - 1.

    Raises:
        ValueError: a sampler call has no points.
    """
    calls = sorted(points.histogram())
    count = calls[-1] + 1 if points.schedule is None else len(points.schedule.timesteps)
    if calls != list(range(count)):
        missing = min(set(range(count)) - set(calls))
        raise ValueError(
            f"ranges by sampler call need points at every call, call {missing} has none: draw "
            "them with PerCall or AllCalls"
        )
    return calls


def by_call(x: Tensor, points: CalibrationSet, per_call: bool) -> Iterator[tuple[int, Tensor]]:
    """Split the rows of ``x`` by sampler call; all rows come under call 0 if not ``per_call``."""
    if not per_call:
        yield 0, x
        return
    step = points.step.repeat_interleave(x.shape[0] // len(points))
    for call in torch.unique(step):
        yield int(call), x[step == call]
