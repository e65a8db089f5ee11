"""A denoising walk of a sampler, as distillation uses it: the points of one call after another."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from quantarena.methods.core.record.points import CalibrationSet


class Driver(StrEnum):
    """The network whose prediction takes the walk to its next sample."""

    TEACHER = "teacher"
    STUDENT = "student"


@dataclass(frozen=True, slots=True)
class Walk:
    """A sampler that distillation can run.

    Attributes:
        timesteps: model timestep of each sampler call, (S,).
        start: makes new points at the first call, with the given generator.
        step: (prediction, call, sample) -> sample of the next call. It is given all rows of the
            batch and has to apply guidance itself.
        driver: the network whose prediction ``step`` is given.
    """

    timesteps: Tensor
    start: Callable[[torch.Generator], CalibrationSet]
    step: Callable[[Tensor, int, Tensor], Tensor]
    driver: Driver = Driver.TEACHER


def walk_calls(
    walk: Walk,
    predict: Mapping[Driver, Callable[[CalibrationSet], Tensor]],
    generator: torch.Generator,
) -> Iterator[tuple[int, CalibrationSet]]:
    """Run one walk.

    Args:
        walk: the sampler.
        predict: predictions of teacher and student at given points; the driver is asked after each
            call but the last.
        generator: for the start.

    Yields:
        Every sampler call with its points.
    """
    points = walk.start(generator)
    sample = points.sample
    for call, timestep in enumerate(walk.timesteps):
        rows = len(sample)
        points = replace(
            points,
            sample=sample,
            timestep=timestep.expand(rows),
            step=torch.full((rows,), call),
        )
        yield call, points
        if call + 1 < len(walk.timesteps):
            with torch.no_grad():
                sample = walk.step(predict[walk.driver](points), call, sample)
