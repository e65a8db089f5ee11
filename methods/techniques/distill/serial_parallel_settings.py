"""Settings and report of the serial-to-parallel distillation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantarena.methods.techniques.distill.student_walk import RecordedWalks
from quantarena.methods.techniques.learn.oscillation import Freezing
from quantarena.methods.techniques.learn.param_groups import Group


@dataclass(frozen=True, slots=True)
class SerialParallel:
    """Which parameters learn, for how long, and on which pairs of input and target.

    Attributes:
        groups: which parameters learn, and how fast; keys out of ``param_groups.NAMES``.
        rounds: how often the serial and the parallel stage follow each other.
        epochs: passes of each parallel stage over the stored pairs; 0 for no parallel stage.
        batch: rows of a batch in the parallel stage.
        walk_images: images that walk together in the serial stage.
        images: images of each round, the next of a shuffled deck; 0 takes all that were recorded.
        window: sampler calls of a rollout whose gradients make one update.
        serial: run the student's rollouts; else the pairs are the teacher's recorded walks.
        serial_first: start each round with the student's rollout; else the first parallel stage
            uses the teacher's recorded walks.
        guided: take the error of the guided prediction; else that of each guidance half.
        features: paths of modules whose outputs are matched too.
        feature_weight: factor of the modules' mean relative squared error.
        freezing: rule that freezes weights which oscillate between two codes; None for none.
    """

    groups: Mapping[str, Group]
    rounds: int
    epochs: int
    batch: int = 32
    walk_images: int = 8
    images: int = 0
    window: int = 5
    serial: bool = True
    serial_first: bool = True
    guided: bool = True
    features: tuple[str, ...] = ()
    feature_weight: float = 0.0
    freezing: Freezing | None = None

    def images_of(self, walks: RecordedWalks) -> int:
        """Number of images of each round."""
        return min(self.images or walks.images, walks.images)

    def updates(self, walks: RecordedWalks) -> int:
        """Optimiser steps in all."""
        images = self.images_of(walks)
        steps = -(-walks.calls // self.window) if self.serial else 0
        serial = -(-images // self.walk_images) * steps
        units = max(1, self.batch // walks.halves)
        return self.rounds * (serial + self.epochs * -(-images * walks.calls // units))


@dataclass(slots=True)
class SerialParallelReport:
    """Losses and cost of a serial-to-parallel distillation.

    Attributes:
        losses: loss of every update, measured before the step, by ``serial`` and ``parallel``.
        rows: number of rows that the student learned from.
        teacher_rows: number of rows that the teacher predicted for these updates.
        frozen: share of the weights that were frozen because they oscillated.
        drift: largest distance by which a learned zero point moved to become an integer, in codes.
        rss_growth: peak resident memory minus that at the start, in bytes.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    rows: int = 0
    teacher_rows: int = 0
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
