"""Serial-to-parallel distillation: rollouts of the student first, then large mixed batches.

In the serial stage the student is trained on samples from its own rollout, labelled by the
full-precision teacher; these pairs are stored for the parallel stage. That draws large batches from
them, sampler calls mixed, every row at its own call. Stored samples grow stale as the student
changes, so another round starts with a new rollout.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import UserError
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.distill.deck import Deck
from quantarena.methods.techniques.distill.held_weights import held_weights
from quantarena.methods.techniques.distill.sampler_fit import weighted
from quantarena.methods.techniques.distill.serial_parallel_settings import (
    SerialParallel,
    SerialParallelReport,
)
from quantarena.methods.techniques.distill.student_walk import (
    LabelledPoints,
    RecordedWalks,
    student_walk,
)
from quantarena.methods.techniques.learn.cost import Meter, note_training
from quantarena.methods.techniques.learn.learning import Learning, start_learning
from quantarena.methods.techniques.learn.module_outputs import module_outputs
from quantarena.methods.techniques.learn.param_groups import Optimiser

_FLOOR = 0.1
"""A learned scale stays above this share of its initial value."""


def distill_on_student_walks(
    model: QuantizedModel,
    teacher: nn.Module,
    walks: RecordedWalks,
    settings: SerialParallel,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> SerialParallelReport:
    """Train the quantized network in serial and parallel stages, then freeze its codes.

    Args:
        model: the student, with its ranges set.
        teacher: the full-precision network, called the same way.
        walks: the teacher's recorded walks.
        settings: what learns, for how long and on which pairs.
        seed: seed of the order of images and pairs.
        progress: called with (updates done, updates in all).

    Raises:
        UserError: the loss is no longer finite.
    """
    learning = start_learning(model.layers, model.product_quantizers(), settings.groups)
    report = SerialParallelReport()
    with Meter() as meter:
        try:
            with torch.enable_grad(), model.using(weights=True, acts=True):
                learner = _Learner(model, teacher, walks, settings, learning, report, progress)
                learner.run(torch.Generator().manual_seed(seed))
        finally:  # an interrupt must leave codes behind
            report.drift = learning.finish()
    report.rss_growth = meter.rss_growth
    note_training(model, sum(map(len, report.losses.values())), report.rows)
    return report


class _Learner:
    """The updates of both stages under one optimiser."""

    def __init__(
        self,
        model: QuantizedModel,
        teacher: nn.Module,
        walks: RecordedWalks,
        settings: SerialParallel,
        learning: Learning,
        report: SerialParallelReport,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.teacher, self.walks, self.settings = model, teacher, walks, settings
        self.report, self.progress = report, progress
        self.optimiser = Optimiser(learning.parameters, settings.groups)
        self.total, self.count = settings.updates(walks), 0
        scales = [
            x.parameter
            for n in ("weight_scale", "act_scale")
            for x in learning.parameters.get(n, [])
        ]
        self.floors = [(scale, _FLOOR * scale.detach().clone()) for scale in scales]
        freezing = settings.freezing
        self.freezer = None if freezing is None else freezing.watch(model)

    def run(self, generator: torch.Generator) -> None:
        """Run all rounds, each on the next images of a shuffled deck."""
        settings, walks = self.settings, self.walks
        count, deck = settings.images_of(walks), Deck(walks.images)
        pairs: LabelledPoints | None = None
        for _ in range(settings.rounds):
            images = deck.deal(count, generator)
            if settings.serial and settings.serial_first:
                pairs = self.serial(images)
            if settings.epochs:
                self.parallel(walks.of(images) if pairs is None else pairs, generator)
            if settings.serial and not settings.serial_first:
                pairs = self.serial(images)
        if self.freezer is not None:
            self.report.frozen = self.freezer.share()

    def serial(self, chosen: Tensor) -> LabelledPoints:
        """Let the student walk with these images, training on the way; returns what it met."""
        walks, settings = self.walks, self.settings
        met: list[CalibrationSet] = []
        seen: list[Tensor] = []  # rows of the recording that they stand for
        labels: list[Tensor] = []
        for images in torch.split(chosen, settings.walk_images):
            predictions: list[Tensor] = []
            walk = student_walk(walks, images, lambda *_, past=predictions: past[-1])
            for start in range(0, walks.calls, settings.window):
                length = min(settings.window, walks.calls - start)
                with self.update("serial") as losses:
                    for rows, points in islice(walk, length):
                        with torch.no_grad():
                            target = points.call(self.teacher)
                        self.report.teacher_rows += len(points)
                        prediction, loss = self.backward(points, target, 1 / length)
                        predictions.append(prediction)
                        losses.append(loss)
                        met.append(points)
                        labels.append(target)
                        seen.append(rows)
        pairs = walks.recorded.points.rows(torch.cat(seen))
        return LabelledPoints(
            replace(pairs, sample=torch.cat([points.sample for points in met])),
            torch.cat(labels).cpu(),
        )

    def parallel(self, pairs: LabelledPoints, generator: torch.Generator) -> None:
        """Train on batches of all sampler calls mixed; the halves of an image stay together."""
        halves = self.walks.halves
        units = max(1, self.settings.batch // halves)
        for _ in range(self.settings.epochs):
            order = torch.randperm(len(pairs.targets) // halves, generator=generator)
            for unit in torch.split(order, units):
                rows = (unit[:, None] * halves + torch.arange(halves)).flatten()
                with self.update("parallel") as losses:
                    losses.append(
                        self.backward(pairs.points.rows(rows), pairs.targets[rows], 1.0)[1]
                    )

    @contextmanager
    def update(self, stage: str) -> Iterator[list[float]]:
        """Take one optimiser step on the gradients of all passes inside the block.

        Raises:
            UserError: the loss is no longer finite.
        """
        losses: list[float] = []
        self.optimiser.zero_grad()
        with held_weights(self.model):
            yield losses
        loss = sum(losses) / len(losses)
        if not math.isfinite(loss):
            raise UserError(
                f"learning diverged at update {self.count}: its loss is {loss}; lower the learning "
                "rates"
            )
        self.optimiser.step(self.count / self.total)
        self.settle()
        self.count += 1
        self.report.losses.setdefault(stage, []).append(loss)
        if self.progress is not None:
            self.progress(self.count, self.total)

    def backward(
        self, points: CalibrationSet, target: Tensor, share: float
    ) -> tuple[Tensor, float]:
        """Add ``share`` times the gradient of one pass; returns the prediction and its loss."""
        paths = self.settings.features
        self.report.rows += len(points)
        with module_outputs(self.model.module, paths) as ours:
            prediction = self.model.run(points)
        loss = self.error(points.step, prediction - target.to(prediction.device))
        total = loss
        if paths:
            with torch.no_grad(), module_outputs(self.teacher, paths) as theirs:
                points.call(self.teacher)
            self.report.teacher_rows += len(points)
            gaps = [relative(ours[path], theirs[path]) for path in paths]
            total = total + self.settings.feature_weight * torch.stack(gaps).mean()
        (share * total).backward()  # type: ignore[no-untyped-call]
        return prediction.detach(), float(loss.detach())

    @torch.no_grad()
    def settle(self) -> None:
        """Keep scales positive and freeze weights that oscillate."""
        for scale, floor in self.floors:
            torch.maximum(scale, floor, out=scale)
        if self.freezer is not None:
            self.freezer.step()

    def error(self, step: Tensor, gap: Tensor) -> Tensor:
        """Mean squared error of the guided prediction, or of the halves' own predictions."""
        if not self.settings.guided or self.walks.halves == 1:
            return gap.square().mean()
        halves = self.walks.by_half(gap)
        calls: Sequence[int] = step[:: self.walks.halves].tolist()
        weights = torch.stack([self.walks.step.guidance(call) for call in calls])
        return weighted(halves, weights.to(halves.device)).square().mean()


def relative(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared error relative to the mean square of the teacher's features."""
    return (ours - theirs).square().mean() / theirs.square().mean().clamp(min=1e-12)
