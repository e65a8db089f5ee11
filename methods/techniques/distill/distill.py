"""End-to-end distillation: the quantized network learns to predict what its twin predicts.

Student and teacher see the same samples along a denoising walk. Whose prediction takes the walk to
its next sample is a choice: the teacher's gives the full-precision trajectory (EfficientDM, He et
al., ICLR 2024), the student's gives the samples that the quantized network will really meet.

Terms on features of several consecutive calls (MPQ-DM's relation distillation, AAAI 2025) need the
gradient of all those calls. Their features are computed without a graph first, the term is
differentiated with respect to them, and then each call is run again and sent its own part of that
gradient. So at most one call's graph is alive, whatever the window, and no branch is detached.
Weights are quantized once for all these passes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import Unsupported, UserError
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.weight import WeightQuantizer
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.learn.cost import Meter
from quantarena.methods.techniques.learn.learning import Learning, start_learning
from quantarena.methods.techniques.learn.losses import RoundingTerm
from quantarena.methods.techniques.learn.param_groups import Group, Optimiser


class Driver(StrEnum):
    """Whose prediction takes the walk to the next sample."""

    TEACHER = "teacher"
    STUDENT = "student"


@dataclass(frozen=True, slots=True)
class Walk:
    """A sampler, as distillation needs it.

    Attributes:
        timesteps: model timestep of each call, (S,).
        start: fresh points at the first call, from a generator.
        step: (prediction, call, sample) -> the sample of the next call, all rows of the batch;
            guidance is its business.
        driver: whose prediction it is given.
    """

    timesteps: Tensor
    start: Callable[[torch.Generator], CalibrationSet]
    step: Callable[[Tensor, int, Tensor], Tensor]
    driver: Driver = Driver.TEACHER


@dataclass(frozen=True, slots=True)
class WindowTerm:
    """A loss on features of consecutive calls.

    Attributes:
        module: path of the module whose output is the feature.
        loss: (student's features, teacher's features), one each call, oldest first -> loss.
        calls: length of the window; the term acts at every ``calls``-th call of a walk.
        weight: of the term.
    """

    module: str
    loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
    calls: int = 2
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Distillation:
    """How the network is distilled.

    Attributes:
        updates: optimiser steps, one a sampler call; walks begin anew as often as needed.
        groups: what learns, by a name out of ``groups.NAMES``.
        reduction: of the squared error of the prediction, ``sum`` or ``mean``.
        terms: losses on features.
        rounding: the term that decides roundings; acts where ``rounding`` learns.
        rank: of LoRA.
    """

    updates: int
    groups: Mapping[str, Group]
    reduction: Literal["sum", "mean"] = "mean"
    terms: tuple[WindowTerm, ...] = ()
    rounding: RoundingTerm = field(default_factory=RoundingTerm)
    rank: int = 32


@dataclass(frozen=True, slots=True)
class DistillReport:
    """What distillation did.

    Attributes:
        updates: optimiser steps taken.
        losses: prediction loss of each update, before it.
        drift: farthest that a learned zero point moved to become an integer, in codes.
        seconds: wall time.
        cpu_seconds: of all threads.
        rss_growth: bytes of resident memory at its highest above that at the start.
        device_bytes: highest bytes on the CUDA device, 0 without one.
    """

    updates: int
    losses: tuple[float, ...]
    drift: float
    seconds: float
    cpu_seconds: float
    rss_growth: int
    device_bytes: int

    def note(self) -> dict[str, Any]:
        """Updates, mean loss of the first and the last (at most 20) of them, and memory."""
        edge = max(1, min(20, len(self.losses) // 2))
        return {
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
) -> DistillReport:
    """Let the quantized network learn end to end; its codes are frozen afterwards.

    An interrupt is raised again, but not before what was learned so far is frozen.

    Args:
        model: ranges set.
        teacher: the full-precision network; same call.
        walk: the sampler.
        schedule: what learns, how fast and how long.
        seed: of the walks.
        progress: called with (updates done, updates).

    Raises:
        Unsupported: a term's module gives no tensor.
        UserError: the loss is no longer finite.
        ValueError: the schedule asks for what these layers cannot learn.
    """
    acts = model.product_quantizers()
    learning = start_learning(model.layers, acts, schedule.groups, schedule.rank)
    losses: list[float] = []
    drift = 0.0
    with Meter() as meter:
        try:
            with torch.enable_grad(), model.using(weights=True, acts=True):
                for loss in _updates(model, teacher, walk, schedule, learning, seed):
                    losses.append(loss)
                    if progress is not None:
                        progress(len(losses), schedule.updates)
        finally:
            drift = learning.finish()
    return DistillReport(
        len(losses),
        tuple(losses),
        drift,
        meter.seconds,
        meter.cpu_seconds,
        meter.rss_growth,
        meter.device_bytes,
    )


def calls(
    walk: Walk,
    predict: Mapping[Driver, Callable[[CalibrationSet], Tensor]],
    generator: torch.Generator,
) -> Iterator[tuple[int, CalibrationSet]]:
    """One walk: every call and its points; predictions are asked for after each."""
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


def _updates(
    model: QuantizedModel,
    teacher: nn.Module,
    walk: Walk,
    schedule: Distillation,
    learning: Learning,
    seed: int,
) -> Iterator[float]:
    """Prediction losses, one an update."""
    optimiser = Optimiser(learning.found, schedule.groups)
    generator = torch.Generator().manual_seed(seed)
    count = 0
    seen: dict[Driver, Tensor] = {}  # predictions at the present call
    predict = {driver: (lambda points, d=driver: seen[d]) for driver in Driver}
    longest = max((term.calls for term in schedule.terms), default=1)
    while count < schedule.updates:
        window: list[_Call] = []
        for call, points in calls(walk, predict, generator):
            paths = tuple(dict.fromkeys(term.module for term in schedule.terms))
            with torch.no_grad(), watching(teacher, paths) as features:
                wanted = points.call(teacher)
            window = [*window, _Call(points, wanted, dict(features))][-longest:]
            done = count / schedule.updates
            for soft in learning.softs:
                soft.penalty = schedule.rounding.at(done)
            optimiser.zero_grad()
            loss, prediction = _gradients(model, window, call, schedule)
            if not torch.isfinite(loss):
                raise UserError(
                    f"distillation diverged at update {count}: its loss is {float(loss)}; lower "
                    "the learning rates"
                )
            seen |= {Driver.TEACHER: wanted, Driver.STUDENT: prediction}
            optimiser.step(done)
            count += 1
            yield float(loss)
            if count == schedule.updates:
                return


@dataclass(frozen=True, slots=True)
class _Call:
    """One sampler call: its points, what the teacher predicted, and the teacher's features."""

    points: CalibrationSet
    wanted: Tensor
    features: dict[str, Tensor]


def _gradients(
    model: QuantizedModel, window: Sequence[_Call], call: int, schedule: Distillation
) -> tuple[Tensor, Tensor]:
    """Add the gradients of one update; returns the prediction loss and the prediction."""
    with held_weights(model):
        return _passes(model, window, call, schedule)


def _passes(
    model: QuantizedModel, window: Sequence[_Call], call: int, schedule: Distillation
) -> tuple[Tensor, Tensor]:
    """All passes of one update."""
    due = [t for t in schedule.terms if (call + 1) % t.calls == 0 and len(window) >= t.calls]
    pulls = _feature_gradients(model, window, due)
    for place, pull in enumerate(pulls[:-1]):
        if pull:
            with watching(model.module, tuple(pull)) as features:
                model.run(window[place].points)
            torch.autograd.backward([features[n] for n in pull], list(pull.values()))  # type: ignore[no-untyped-call]
    now, last = window[-1], pulls[-1]
    with watching(model.module, tuple(last)) as features:
        prediction = model.run(now.points)
    error = (prediction - now.wanted).square()
    loss = error.sum() if schedule.reduction == "sum" else error.mean()
    torch.autograd.backward(  # type: ignore[no-untyped-call]
        [loss, *(features[n] for n in last)], [torch.ones_like(loss), *last.values()]
    )
    return loss.detach(), prediction.detach()


def _feature_gradients(
    model: QuantizedModel, window: Sequence[_Call], due: Sequence[WindowTerm]
) -> list[dict[str, Tensor]]:
    """Gradient of the due terms by the student's features, call by call and module by module."""
    pulls: list[dict[str, Tensor]] = [{} for _ in window]
    if not due:
        return pulls
    paths = tuple(dict.fromkeys(term.module for term in due))
    reach = max(term.calls for term in due)
    ours: list[dict[str, Tensor]] = []
    for entry in window[-reach:]:
        with torch.no_grad(), watching(model.module, paths) as features:
            model.run(entry.points)
        ours.append({n: f.detach().requires_grad_(True) for n, f in features.items()})
    total = torch.zeros(())
    for term in due:
        mine = [features[term.module] for features in ours[-term.calls :]]
        theirs = [entry.features[term.module] for entry in window[-term.calls :]]
        total = total + term.weight * term.loss(mine, theirs)
    total.backward()  # type: ignore[no-untyped-call]
    for pull, features in zip(pulls[-reach:], ours, strict=True):
        pull.update({n: f.grad for n, f in features.items() if f.grad is not None})
    return pulls


@contextmanager
def held_weights(model: QuantizedModel) -> Iterator[None]:
    """Quantize weights once for all passes inside; then send their gradients on together."""
    parts = [(layer, part) for layer in model.layers.values() for part in layer.parts]
    held: list[tuple[WeightQuantizer, Tensor]] = []
    try:
        for layer, part in parts:
            quantizer = part.weight_quantizer
            if quantizer is not None and quantizer.codes is None:
                held.append((quantizer, quantizer.hold(layer.part_weight(part))))
        yield
        pulls = [(value, q.held.grad) for q, value in held if q.held is not None]
    finally:
        for quantizer, _ in held:
            quantizer.held = None
    sent = [(value, pull) for value, pull in pulls if pull is not None]
    torch.autograd.backward([v for v, _ in sent], [p for _, p in sent])  # type: ignore[no-untyped-call]


@contextmanager
def watching(root: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the named modules in the pass inside the block."""
    seen: dict[str, Tensor] = {}

    def watch(path: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if not isinstance(first, Tensor):
                raise Unsupported(f"{path} gives a {type(first).__name__}, features are tensors")
            seen[path] = first

        return note

    handles = [root.get_submodule(path).register_forward_hook(watch(path)) for path in paths]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
