"""Block reconstruction: make each quantized block answer as its full-precision twin does.

One forward pass of the quantized network carries the whole calibration set. When it arrives at a
block, the block is optimised on the inputs that just arrived (so they come from the quantized
prefix, as BRECQ and Q-Diffusion ask), then the pass goes on through the optimised block. The prefix
is therefore computed once, never again for each block, and the full-precision targets of all blocks
come from one pass before.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.layers import QuantLayer
from quantarena.methods.core.model import QuantizedModel
from quantarena.methods.core.partition import Block
from quantarena.methods.core.trajectory import CalibrationSet

BlockProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How one block is optimised.

    Attributes:
        iterations: optimiser steps a block; 0 leaves the block as calibrated.
        batch: calibration points a step.
        lr: Adam's learning rate. For activation scales it is relative to each scale.
        regulariser: weight of AdaRound's rounding term.
        warmup: share of the steps before the rounding term acts.
        beta_start: exponent of the rounding term when it starts to act.
        beta_end: exponent at the last step.
        norm: the loss is ``|difference| ** norm``, summed over channels, mean over the rest.
        cosine: let the learning rate fall to zero. Not for rounding: its term has to decide the
            last weights at the end, when the rate would be gone.
    """

    iterations: int
    batch: int = 32
    lr: float = 1e-3
    regulariser: float = 0.01
    warmup: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    norm: float = 2.0
    cosine: bool = False


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What reconstruction did to one block.

    Attributes:
        name: module path.
        before: loss on all calibration points before.
        after: loss after, with hard codes; ``after`` may exceed ``soft`` (the hardening gap).
        soft: loss of the last steps, before hardening.
        seconds: wall time.
    """

    name: str
    before: float
    after: float
    soft: float
    seconds: float


class _Arrived(Exception):
    """Stops a forward pass whose remainder nobody needs."""


def reconstruction_loss(output: Tensor, target: Tensor, norm: float) -> Tensor:
    """``|output - target| ** norm`` summed over channels, mean over the rest."""
    channel = 1 if output.dim() == 4 else -1
    difference = output - target
    power = difference.square() if norm == 2.0 else difference.abs().pow(norm)
    return power.sum(channel).mean()


@torch.no_grad()
def block_targets(
    model: QuantizedModel, blocks: Sequence[Block], points: CalibrationSet
) -> dict[str, Tensor]:
    """Full-precision outputs of every block on all points, from one pass."""
    targets: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            targets.setdefault(name, output.detach())  # optimised at the first call as well

        return note

    handles = [
        model.module.get_submodule(b.name).register_forward_hook(keep(b.name)) for b in blocks
    ]
    try:
        with model.using(weights=False, acts=False):
            points.call(model.module)
    finally:
        for handle in handles:
            handle.remove()
    return targets


def _rows(value: Any, index: Tensor, count: int) -> Any:
    """Rows ``index`` of every tensor that has one row a point."""
    if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count:
        return value[index]
    return value


class _Arrival:
    """A block's inputs on all points, and how to run it on some of them."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module, self.args, self.kwargs = module, args, kwargs
        first = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        self.count = first.shape[0]

    def run(self, index: Tensor) -> Tensor:
        args = tuple(_rows(a, index, self.count) for a in self.args)
        kwargs = {k: _rows(v, index, self.count) for k, v in self.kwargs.items()}
        output: Tensor = self.module(*args, **kwargs)
        return output

    @torch.no_grad()
    def loss(self, target: Tensor, norm: float, batch: int = 128) -> float:
        total = 0.0
        for start in range(0, self.count, batch):
            index = torch.arange(start, min(start + batch, self.count))
            part = reconstruction_loss(self.run(index), target[index], norm)
            total += float(part) * len(index)
        return total / self.count


Tuner = Callable[[Sequence[QuantLayer], Schedule], "Tuning"]


@dataclass(slots=True)
class Tuning:
    """What one block optimises.

    Attributes:
        groups: Adam's parameter groups.
        penalise: called with the step after the loss's gradients are there; adds its own.
        finish: called at the end.
    """

    groups: list[dict[str, Any]]
    penalise: Callable[[int], None]
    finish: Callable[[], None]


def tune_rounding(layers: Sequence[QuantLayer], schedule: Schedule) -> Tuning:
    """AdaRound (Nagel et al., ICML 2020): learn to round each weight up or down.

    Every part's rounding takes part in the regulariser, both halves of a split layer included.
    """
    pairs = [
        (part.weight_quantizer, layer.part_weight(part))
        for layer in layers
        for part in layer.part_list()
        if part.weight_quantizer is not None
    ]
    softs = [quantizer.soften(weight) for quantizer, weight in pairs]
    start = schedule.warmup * schedule.iterations

    def penalise(step: int) -> None:
        if step < start or not schedule.regulariser:
            return
        done = (step - start) / max(1.0, schedule.iterations - start)
        beta = schedule.beta_start + (schedule.beta_end - schedule.beta_start) * done
        for soft in softs:
            soft.add_penalty_gradient(schedule.regulariser, beta)

    def finish() -> None:
        for quantizer, weight in pairs:
            quantizer.freeze(weight)

    alphas = [soft.alpha for soft in softs]
    return Tuning([{"params": alphas, "lr": schedule.lr}] if alphas else [], penalise, finish)


def tune_act_scales(layers: Sequence[QuantLayer], schedule: Schedule) -> Tuning:
    """Learn activation scales by their LSQ gradient; zero points stay (Q-Diffusion stage 2)."""
    scales = [
        part.act_quantizer.scale
        for layer in layers
        for part in layer.part_list()
        if part.act_quantizer is not None
    ]
    for scale in scales:
        scale.requires_grad_(True)

    def finish() -> None:
        for scale in scales:
            scale.requires_grad_(False)

    groups = [{"params": [s], "lr": schedule.lr * float(s.detach())} for s in scales]
    return Tuning(groups, lambda step: None, finish)


def _optimise(
    arrival: _Arrival,
    target: Tensor,
    tuning: Tuning,
    schedule: Schedule,
    generator: torch.Generator,
) -> float:
    """Run the steps; returns the mean loss of the last tenth."""
    optimiser = torch.optim.Adam(tuning.groups, fused=True)  # one sweep over memory, not seven
    base = [group["lr"] for group in optimiser.param_groups]
    last: list[float] = []
    size = min(schedule.batch, arrival.count)
    for step in range(schedule.iterations):
        done = step / schedule.iterations
        decay = 0.5 * (1 + math.cos(math.pi * done)) if schedule.cosine else 1.0
        for group, lr in zip(optimiser.param_groups, base, strict=True):
            group["lr"] = lr * decay
        index = torch.randperm(arrival.count, generator=generator)[:size]
        loss = reconstruction_loss(arrival.run(index), target[index], schedule.norm)
        if step >= 0.9 * schedule.iterations:
            last.append(float(loss.detach()))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        tuning.penalise(step)
        optimiser.step()
    return sum(last) / max(1, len(last))


def reconstruct(
    model: QuantizedModel,
    blocks: Sequence[Block],
    points: CalibrationSet,
    tuner: Tuner,
    schedule: Schedule,
    *,
    acts: bool,
    seed: int,
    targets: dict[str, Tensor] | None = None,
    progress: BlockProgress | None = None,
) -> list[BlockReport]:
    """Optimise every block in execution order.

    Args:
        model: weight ranges set; activation ranges set too if ``acts``.
        blocks: partition of the network.
        points: calibration points; the whole set travels as one batch.
        tuner: what to learn (``tune_rounding``, ``tune_act_scales``).
        schedule: how long and how fast.
        acts: whether activation quantizers are on, in the block and in its prefix.
        seed: of the minibatch order.
        targets: full-precision block outputs, when they are at hand already.
        progress: called with (blocks done, blocks).
    """
    wanted = block_targets(model, blocks, points) if targets is None else targets
    generator = torch.Generator().manual_seed(seed)
    reports: list[BlockReport] = []
    handles: dict[str, Any] = {}

    def arrive(block: Block) -> Any:
        def work(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            handles.pop(block.name).remove()  # the block runs many times below; arrive only once
            started = time.perf_counter()
            layers = [model.layers[name] for name in block.layers]
            arrival, target = _Arrival(module, args, kwargs), wanted[block.name]
            before = arrival.loss(target, schedule.norm)
            soft = before
            tuning = tuner(layers, schedule)
            if schedule.iterations and tuning.groups:
                with torch.enable_grad():
                    soft = _optimise(arrival, target, tuning, schedule, generator)
            tuning.finish()
            after = arrival.loss(target, schedule.norm)
            seconds = time.perf_counter() - started
            reports.append(BlockReport(block.name, before, after, soft, seconds))
            if progress is not None:
                progress(len(reports), len(blocks))
            if len(reports) == len(blocks):
                raise _Arrived

        return work

    for block in blocks:
        handles[block.name] = model.module.get_submodule(block.name).register_forward_pre_hook(
            arrive(block), with_kwargs=True
        )
    try:
        with torch.no_grad(), model.using(weights=True, acts=acts):
            points.call(model.module)
    except _Arrived:
        pass
    finally:
        for handle in handles.values():
            handle.remove()
    return reports
