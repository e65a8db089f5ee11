"""Learning on a network's own walks: call after call, and then from all that was met at once.

In the serial stage the quantized network walks through the sampler's calls by its own predictions
(``core.fitted_step``), so it is trained on the samples that it will really meet; the full-precision
network answers on the same samples. What was met and answered is kept. The parallel stage draws
large batches from that, calls mixed, every row at its own sampler call. Kept samples grow stale as
the network changes; another round meets new ones.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import UserError
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.distill.distill import held_weights, watching
from quantarena.methods.techniques.distill.sampler_fit import (
    FittedStep,
    by_image,
    fit_step,
    weighted,
)
from quantarena.methods.techniques.learn.cost import Meter
from quantarena.methods.techniques.learn.learning import Learning, start_learning
from quantarena.methods.techniques.learn.oscillation import Freezing
from quantarena.methods.techniques.learn.param_groups import Group, Optimiser

_FLOOR = 0.1
"""A learned scale stays above this share of where it started."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Inputs at all sampler calls, and what full precision predicts there.

    Attributes:
        points: call after call, (N,) rows; guidance halves of an image side by side.
        wanted: predictions, (N, C, ...).
    """

    points: CalibrationSet
    wanted: Tensor


@dataclass(frozen=True, slots=True)
class Ground:
    """A recording that a quantized network can walk along.

    Attributes:
        recorded: full precision's own walks.
        step: of the sampler.
        calls: sampler calls.
        images: walks.
        halves: rows of an image at each call.
    """

    recorded: Pairs
    step: FittedStep
    calls: int
    images: int
    halves: int

    def rows(self, call: int, images: Tensor) -> Tensor:
        """Rows of these images at a call, halves side by side."""
        first = (call * self.images + images) * self.halves
        return (first[:, None] + torch.arange(self.halves)).flatten()

    def by_half(self, rows: Tensor) -> Tensor:
        """(N * H, C', ...) as (N, H, C, ...): what a prediction has beyond the sample is left."""
        kept = rows[:, : self.recorded.points.sample.shape[1]]
        return kept.reshape(-1, self.halves, *kept.shape[1:])


@dataclass(frozen=True, slots=True)
class Stages:
    """How the network learns.

    Attributes:
        groups: what learns, by a name out of ``groups.NAMES``.
        rounds: how often serial and parallel stage follow each other.
        epochs: of each parallel stage over the kept pairs; 0 for no parallel stage.
        batch: rows of a batch in the parallel stage.
        walks: images that walk together in the serial stage.
        window: sampler calls of a walk whose gradients make one update.
        serial: walk on its own; else the pairs are full precision's own walks.
        serial_first: each round begins with the walk; else the first parallel stage has full
            precision's walks.
        guided: the error is that of the guided prediction; else of each half.
        features: modules whose outputs are matched too.
        feature_weight: of each module's relative squared error.
        freezing: of weights that keep turning between two codes; None for none.
    """

    groups: Mapping[str, Group]
    rounds: int
    epochs: int
    batch: int = 32
    walks: int = 8
    window: int = 5
    serial: bool = True
    serial_first: bool = True
    guided: bool = True
    features: tuple[str, ...] = ()
    feature_weight: float = 0.0
    freezing: Freezing | None = None

    def updates(self, ground: Ground) -> int:
        """Optimiser steps in all."""
        walk = -(-ground.calls // self.window) if self.serial else 0
        walks = -(-ground.images // self.walks) * walk
        units = max(1, self.batch // ground.halves)
        return self.rounds * (walks + self.epochs * -(-ground.images * ground.calls // units))


@dataclass(slots=True)
class StageReport:
    """What happened.

    Attributes:
        losses: of every update, before it, by stage (``serial``, ``parallel``).
        taught: rows that full precision predicted for these stages.
        frozen: share of the weights that stopped turning.
        drift: farthest that a learned zero point moved to become an integer, in codes.
        rss_growth: bytes of resident memory at its highest above that at the start.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    taught: int = 0
    frozen: float = 0.0
    drift: float = 0.0
    rss_growth: int = 0

    def note(self) -> dict[str, Any]:
        """Updates and losses of each stage, the share of frozen weights and memory."""
        return {
            "updates": {stage: len(losses) for stage, losses in self.losses.items()},
            "loss_first": {stage: losses[0] for stage, losses in self.losses.items()},
            "loss_last": {stage: losses[-1] for stage, losses in self.losses.items()},
            "frozen": round(self.frozen, 6),
            "rss_growth": self.rss_growth,
        }


@torch.no_grad()
def predicted(network: nn.Module, points: CalibrationSet, batch: int = 64) -> Tensor:
    """Full-precision predictions, (N, C, ...)."""
    return torch.cat([subset.call(network) for subset in points.batches(batch)])


def prepare(teacher: nn.Module, points: CalibrationSet) -> Ground:
    """Find the sampler's step from recorded walks.

    Args:
        teacher: full precision; runs once on every point.
        points: as ``steps.WholeWalks`` draws them.

    Raises:
        Unsupported: as ``fitted_step.by_image``.
    """
    calls, images, halves = by_image(points)
    wanted = predicted(teacher, points)
    sample = points.sample.reshape(calls, images, halves, *points.sample.shape[1:])
    seen = wanted[:, : sample.shape[3]].reshape(sample.shape)
    step = fit_step(sample[:, :, 0], seen)
    return Ground(Pairs(points, wanted), step, calls, images, halves)


def walk(
    ground: Ground,
    images: Tensor,
    predict: Callable[[CalibrationSet, Tensor], Tensor],
) -> Iterator[tuple[Tensor, CalibrationSet]]:
    """One walk of some images, from their recorded first sample.

    Args:
        ground: of the recording.
        images: which walk, (N,).
        predict: (points, rows) -> predictions without a graph; they decide the next sample.

    Yields:
        Rows of the recording that these are, and the points, before ``predict`` sees them.
    """
    points = ground.recorded.points
    sample = points.sample[ground.rows(0, images)[:: ground.halves]]
    past: list[Tensor] = []
    for call in range(ground.calls):
        rows = ground.rows(call, images)
        now = replace(points.rows(rows), sample=sample.repeat_interleave(ground.halves, 0))
        yield rows, now
        if call + 1 < ground.calls:
            past.append(ground.by_half(predict(now, rows)))
            sample = ground.step.next(call, sample, past, images)


def learn_on_walks(
    model: QuantizedModel,
    teacher: nn.Module,
    ground: Ground,
    stages: Stages,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> StageReport:
    """Let the network learn in serial and parallel stages; its codes are frozen afterwards.

    Args:
        model: ranges set.
        teacher: full precision; same call.
        ground: of the recording.
        stages: what learns, how long and on what.
        seed: of the order.
        progress: called with (updates done, updates).

    Raises:
        UserError: the loss is no longer finite.
    """
    learning = start_learning(model.layers, model.product_quantizers(), stages.groups)
    report = StageReport()
    with Meter() as meter:
        try:
            with torch.enable_grad(), model.using(weights=True, acts=True):
                learner = _Learner(model, teacher, ground, stages, learning, report, progress)
                learner.run(torch.Generator().manual_seed(seed))
        finally:  # an interrupt leaves codes
            report.drift = learning.finish()
    report.rss_growth = meter.rss_growth
    return report


class _Learner:
    """Updates of both stages under one optimiser."""

    def __init__(
        self,
        model: QuantizedModel,
        teacher: nn.Module,
        ground: Ground,
        stages: Stages,
        learning: Learning,
        report: StageReport,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.teacher, self.ground, self.stages = model, teacher, ground, stages
        self.report, self.progress = report, progress
        self.optimiser = Optimiser(learning.found, stages.groups)
        self.total, self.count = stages.updates(ground), 0
        scales = [
            x.parameter for n in ("weight_scale", "act_scale") for x in learning.found.get(n, [])
        ]
        self.floors = [(scale, _FLOOR * scale.detach().clone()) for scale in scales]
        freezing = stages.freezing
        self.freezer = None if freezing is None else freezing.of(model)

    def run(self, generator: torch.Generator) -> None:
        """All rounds."""
        pairs = self.ground.recorded
        for _ in range(self.stages.rounds):
            if self.stages.serial and self.stages.serial_first:
                pairs = self.serial(generator)
            if self.stages.epochs:
                self.parallel(pairs, generator)
            if self.stages.serial and not self.stages.serial_first:
                pairs = self.serial(generator)
        if self.freezer is not None:
            self.report.frozen = self.freezer.share()

    def serial(self, generator: torch.Generator) -> Pairs:
        """Walk with all images, learning on the way; what was met."""
        ground, stages = self.ground, self.stages
        samples, wanted = ground.recorded.points.sample.clone(), ground.recorded.wanted.clone()
        order = torch.randperm(ground.images, generator=generator)
        for images in torch.split(order, stages.walks):
            seen: list[Tensor] = []
            way = walk(ground, images, lambda *_, last=seen: last[-1])
            for start in range(0, ground.calls, stages.window):
                length = min(stages.window, ground.calls - start)
                with self.update("serial") as losses:
                    for rows, points in islice(way, length):
                        with torch.no_grad():
                            target = points.call(self.teacher)
                        self.report.taught += len(points)
                        prediction, loss = self.backward(points, target, 1 / length)
                        seen.append(prediction)
                        losses.append(loss)
                        samples[rows], wanted[rows] = points.sample, target
        return Pairs(replace(ground.recorded.points, sample=samples), wanted)

    def parallel(self, pairs: Pairs, generator: torch.Generator) -> None:
        """Batches of all calls mixed; the halves of an image stay together."""
        halves = self.ground.halves
        units = max(1, self.stages.batch // halves)
        for _ in range(self.stages.epochs):
            order = torch.randperm(len(pairs.wanted) // halves, generator=generator)
            for unit in torch.split(order, units):
                rows = (unit[:, None] * halves + torch.arange(halves)).flatten()
                with self.update("parallel") as losses:
                    losses.append(
                        self.backward(pairs.points.rows(rows), pairs.wanted[rows], 1.0)[1]
                    )

    @contextmanager
    def update(self, stage: str) -> Iterator[list[float]]:
        """One optimiser step on the gradients of all passes inside; weights are quantized once.

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
        self, points: CalibrationSet, wanted: Tensor, share: float
    ) -> tuple[Tensor, float]:
        """Add the gradient of one pass; the prediction and its loss."""
        paths = self.stages.features
        with watching(self.model.module, paths) as ours:
            prediction = self.model.run(points)
        loss = self.error(points.step, prediction - wanted)
        total = loss
        if paths:
            with torch.no_grad(), watching(self.teacher, paths) as theirs:
                points.call(self.teacher)
            self.report.taught += len(points)
            gaps = [relative(ours[path], theirs[path]) for path in paths]
            total = total + self.stages.feature_weight * torch.stack(gaps).mean()
        (share * total).backward()  # type: ignore[no-untyped-call]
        return prediction.detach(), float(loss.detach())

    @torch.no_grad()
    def settle(self) -> None:
        """Scales stay positive; weights that turn too often stop."""
        for scale, floor in self.floors:
            torch.maximum(scale, floor, out=scale)
        if self.freezer is not None:
            self.freezer.step()

    def error(self, step: Tensor, gap: Tensor) -> Tensor:
        """Mean squared error of the guided prediction, or of each half's."""
        if not self.stages.guided or self.ground.halves == 1:
            return gap.square().mean()
        halves = self.ground.by_half(gap)
        calls: Sequence[int] = step[:: self.ground.halves].tolist()
        weights = torch.stack([self.ground.step.guidance(call) for call in calls])
        return weighted(halves, weights).square().mean()


def relative(ours: Tensor, theirs: Tensor) -> Tensor:
    """Squared error over the mean square of what was wanted."""
    return (ours - theirs).square().mean() / theirs.square().mean().clamp(min=1e-12)
