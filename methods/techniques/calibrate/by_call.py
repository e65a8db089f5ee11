"""Calibration points and values sorted by the sampler call that they belong to."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quantarena.methods.core.clock import StepSchedule
from quantarena.methods.core.record.points import CalibrationSet


def bank_schedule(points: CalibrationSet) -> StepSchedule:
    """The sampler calls that a bank made from these points has entries for."""
    calls = calls_of(points)
    if points.schedule is not None:
        return points.schedule
    times = [float(points.timestep[points.step == call][0]) for call in calls]
    return StepSchedule("", tuple(times))


def calls_of(points: CalibrationSet) -> list[int]:
    """0 to S - 1, all of which need points.

    Raises:
        ValueError: a sampler call has none.
    """
    calls = sorted(points.histogram())
    count = calls[-1] + 1 if points.schedule is None else len(points.schedule.timesteps)
    if calls != list(range(count)):
        missing = min(set(range(count)) - set(calls))
        raise ValueError(
            f"ranges by sampler call need points at every call, call {missing} has none: draw "
            "them with PerStep or AllSteps"
        )
    return calls


def by_call(x: Tensor, points: CalibrationSet, per_step: bool) -> Iterator[tuple[int, Tensor]]:
    """Rows of ``x`` by the sampler call that they belong to; all under 0 if not asked."""
    if not per_step:
        yield 0, x
        return
    step = points.step.repeat_interleave(x.shape[0] // len(points))
    for call in torch.unique(step):
        yield int(call), x[step == call]
