"""Rollouts of the student: a quantized network walks through the sampler by its own predictions.

The walk starts from a recorded first sample. The sampler itself is not needed: ``sampler_fit``
reads its step from the recorded walks of the full-precision network.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.distill.sampler_fit import FittedStep, by_image, fit_step


@dataclass(frozen=True, slots=True)
class LabelledPoints:
    """Network inputs at all sampler calls, with the teacher's predictions.

    Attributes:
        points: inputs, call after call, (N,) rows; guidance halves of an image side by side.
        targets: full-precision predictions, (N, C, ...).
    """

    points: CalibrationSet
    targets: Tensor


@dataclass(frozen=True, slots=True)
class RecordedWalks:
    """The teacher's recorded walks, and the sampler's step fitted to them.

    Attributes:
        recorded: what the teacher was fed and what it predicted.
        step: the sampler's step.
        calls: number of sampler calls.
        images: number of walks.
        halves: rows of one image at each call: 2 with classifier-free guidance.
    """

    recorded: LabelledPoints
    step: FittedStep
    calls: int
    images: int
    halves: int

    def rows(self, call: int, images: Tensor) -> Tensor:
        """Rows of these images at a sampler call, halves side by side."""
        first = (call * self.images + images) * self.halves
        return (first[:, None] + torch.arange(self.halves)).flatten()

    def of(self, images: Tensor) -> LabelledPoints:
        """What was recorded of these images, call after call."""
        rows = torch.cat([self.rows(call, images) for call in range(self.calls)])
        return LabelledPoints(self.recorded.points.rows(rows), self.recorded.targets[rows])

    def by_half(self, predictions: Tensor) -> Tensor:
        """Predictions (N * H, C', ...) as (N, H, C, ...).

        Channels beyond those of the sample, such as a learned variance, are left out.
        """
        channels = predictions[:, : self.recorded.points.sample.shape[1]]
        return channels.reshape(-1, self.halves, *channels.shape[1:])


def fit_walks(teacher: nn.Module, points: CalibrationSet) -> RecordedWalks:
    """Label recorded walks with the teacher's predictions and fit the sampler's step to them.

    Args:
        teacher: full-precision network; runs once on every point.
        points: whole walks, as ``steps.WholeWalks`` draws them.

    Raises:
        Unsupported: the points are no whole walks, see ``sampler_fit.by_image``.
    """
    calls, images, halves = by_image(points)
    targets = teacher_predictions(teacher, points)
    sample = points.sample.reshape(calls, images, halves, *points.sample.shape[1:])
    predictions = targets[:, : sample.shape[3]].reshape(sample.shape)
    step = fit_step(sample[:, :, 0], predictions)
    return RecordedWalks(LabelledPoints(points, targets), step, calls, images, halves)


@torch.no_grad()
def teacher_predictions(teacher: nn.Module, points: CalibrationSet, batch: int = 0) -> Tensor:
    """Full-precision predictions at all points, (N, C, ...), on the host beside the points."""
    return torch.cat([subset.call(teacher).cpu() for subset in points.batches(batch)])


def student_walk(
    walks: RecordedWalks,
    images: Tensor,
    predict: Callable[[CalibrationSet, Tensor], Tensor],
) -> Iterator[tuple[Tensor, CalibrationSet]]:
    """Run one walk of some images from their recorded first sample.

    Args:
        walks: the recording.
        images: which images walk, (N,).
        predict: (points, rows) -> predictions without a graph; they decide the next sample, which
            is computed on the host: the fitted steps are there, and a sample is small.

    Yields:
        At each sampler call the rows of the recording that the points stand for, and the points,
        before ``predict`` is given them.
    """
    points = walks.recorded.points
    sample = points.sample[walks.rows(0, images)[:: walks.halves]]
    past: list[Tensor] = []
    for call in range(walks.calls):
        rows = walks.rows(call, images)
        now = replace(points.rows(rows), sample=sample.repeat_interleave(walks.halves, 0))
        yield rows, now
        if call + 1 < walks.calls:
            past.append(walks.by_half(predict(now, rows).to(sample.device)))
            sample = walks.step.next(call, sample, past, images)
