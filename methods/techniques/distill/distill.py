"""End-to-end distillation: the quantized network learns to predict what full precision predicts.

Student and teacher are given the same samples along a denoising walk. The prediction that takes
the walk to its next sample may be the teacher's, which gives the full-precision trajectory
(EfficientDM, He et al., ICLR 2024), or the student's, which gives the samples that the quantized
network meets when it generates. Each sampler call is one update of the student.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import UserError
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.distill.held_out import NOTHING_HELD, Judge
from quantarena.methods.techniques.distill.walk import Driver, Walk, walk_calls
from quantarena.methods.techniques.distill.window_terms import (
    TaughtCall,
    WindowTerm,
    add_gradients,
)
from quantarena.methods.techniques.learn.cost import Meter, note_training
from quantarena.methods.techniques.learn.learning import Learning, start_learning
from quantarena.methods.techniques.learn.losses import RoundingTerm
from quantarena.methods.techniques.learn.module_outputs import module_outputs
from quantarena.methods.techniques.learn.param_groups import Group, Optimiser


@dataclass(frozen=True, slots=True)
class Distillation:
    """Settings of a distillation.

    Attributes:
        updates: number of optimiser steps, one for each sampler call; when a walk ends, a new one
            starts.
        groups: which parameters learn, and how fast; keys out of ``param_groups.NAMES``.
        reduction: ``sum`` or ``mean`` of the prediction's squared error.
        terms: further losses, on features.
        rounding: regulariser that decides roundings; used only where ``rounding`` learns.
        rank: rank of LoRA's factors.
    """

    updates: int
    groups: Mapping[str, Group]
    reduction: Literal["sum", "mean"] = "mean"
    terms: tuple[WindowTerm, ...] = ()
    rounding: RoundingTerm = field(default_factory=RoundingTerm)
    rank: int = 32


@dataclass(frozen=True, slots=True)
class DistillReport:
    """Losses and cost of a distillation.

    Attributes:
        updates: optimiser steps taken.
        losses: prediction loss of each update, measured before the step.
        drift: largest distance by which a learned zero point moved to become an integer, in codes.
        seconds: wall time.
        cpu_seconds: processor time of all threads.
        rss_growth: peak resident memory minus that at the start, in bytes.
        device_bytes: peak memory of tensors on the CUDA device in bytes, 0 without a device.
        held_before: relative error of the prediction before the distillation, on judged points of
            images that did not walk; None without such points.
        held_after: the same after it, codes frozen.
        all_walked: whether there is no such error because every judged image walked.
    """

    updates: int
    losses: tuple[float, ...]
    drift: float
    seconds: float
    cpu_seconds: float
    rss_growth: int
    device_bytes: int
    held_before: float | None = None
    held_after: float | None = None
    all_walked: bool = False

    def note(self) -> dict[str, Any]:
        """Updates, mean loss of the first and the last (at most 20) of them, and memory.

        The errors on held-out points are among them where there are any.
        """
        edge = max(1, min(20, len(self.losses) // 2))
        held = {"held_before": self.held_before, "held_after": self.held_after}
        return {
            **(held if self.held_before is not None else {}),
            **({"held_out": NOTHING_HELD} if self.all_walked else {}),
            "updates": self.updates,
            "loss_first": sum(self.losses[:edge]) / edge,
            "loss_last": sum(self.losses[-edge:]) / edge,
            "rss_growth": self.rss_growth,
        }


def distill(
    model: QuantizedModel,
    teacher: nn.Module,
    walk: Walk,
    schedule: Distillation,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    judged: CalibrationSet | None = None,
) -> DistillReport:
    """Train the quantized network end to end, then freeze its codes.

    An interrupt is raised again after the codes learned so far are frozen.

    Args:
        model: the student, with its ranges set.
        teacher: the full-precision network, called the same way.
        walk: the sampler.
        schedule: settings of the distillation.
        seed: seed of the walks' starts.
        progress: called with (updates done, updates in all).
        judged: recorded points to measure errors on before and after; those of images that walk
            are left out of the report.

    Raises:
        Unsupported: a term's module returns no tensor.
        UserError: the loss is no longer finite.
        ValueError: the schedule asks for what these layers cannot learn.
    """
    acts = model.product_quantizers()
    learning = start_learning(model.layers, acts, schedule.groups, schedule.rank)
    losses: list[float] = []
    drift, rows, images = 0.0, 0, set[int]()
    judge = None if judged is None else Judge.of(teacher, judged)
    before = None if judge is None else judge.errors(model)
    with Meter() as meter:
        try:
            with torch.enable_grad(), model.using(weights=True, acts=True):
                for loss, seen, trained in _updates(model, teacher, walk, schedule, learning, seed):
                    losses.append(loss)
                    rows += trained
                    images.update([] if seen.image is None else seen.image.tolist())
                    if progress is not None:
                        progress(len(losses), schedule.updates)
        finally:
            drift = learning.finish()
    note_training(model, len(losses), rows, images)
    held_before = held_after = None
    if judge is not None and before is not None:
        held_before, held_after = (
            judge.unseen(errors, images) for errors in (before, judge.errors(model))
        )
    return DistillReport(
        len(losses),
        tuple(losses),
        drift,
        meter.seconds,
        meter.cpu_seconds,
        meter.rss_growth,
        meter.device_bytes,
        held_before,
        held_after,
        all_walked=judge is not None and held_before is None,
    )


def _updates(
    model: QuantizedModel,
    teacher: nn.Module,
    walk: Walk,
    schedule: Distillation,
    learning: Learning,
    seed: int,
) -> Iterator[tuple[float, CalibrationSet, int]]:
    """Train; yields each update's prediction loss, its points, and its rows with a gradient."""
    optimiser = Optimiser(learning.parameters, schedule.groups)
    generator = torch.Generator().manual_seed(seed)
    count = 0
    predictions: dict[Driver, Tensor] = {}  # at the present call
    predict = {driver: (lambda points, d=driver: predictions[d]) for driver in Driver}
    longest = max((term.calls for term in schedule.terms), default=1)
    paths = tuple(dict.fromkeys(term.module for term in schedule.terms))
    while count < schedule.updates:
        window: list[TaughtCall] = []
        for call, points in walk_calls(walk, predict, generator):
            with torch.no_grad(), module_outputs(teacher, paths) as features:
                target = points.call(teacher)
            window = [*window, TaughtCall(points, target, dict(features))][-longest:]
            done = count / schedule.updates
            for soft in learning.soft_roundings:
                soft.penalty = schedule.rounding.at((count + 1) / schedule.updates)
            optimiser.zero_grad()
            loss, prediction, rows = add_gradients(
                model, window, call, schedule.terms, schedule.reduction
            )
            if not torch.isfinite(loss):
                raise UserError(
                    f"distillation diverged at update {count}: its loss is {float(loss)}; lower "
                    "the learning rates"
                )
            predictions |= {Driver.TEACHER: target, Driver.STUDENT: prediction}
            optimiser.step(done)
            count += 1
            yield float(loss), points, rows
            if count == schedule.updates:
                return
