"""One block's optimisation: rows in, losses down, codes hard."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.trace.blocks import Block
from quantarena.methods.techniques.learn.block_rows import Arrival
from quantarena.methods.techniques.learn.learning import Learning
from quantarena.methods.techniques.learn.losses import Step, layer_loss, reconstruction_loss
from quantarena.methods.techniques.learn.param_groups import Optimiser
from quantarena.methods.techniques.learn.schedule import Schedule

_CHECK = 20
"""Iterations between looks at how many roundings are undecided."""
_UNDECIDED = 0.01
"""A rounding this far from 0 and 1 can still be turned."""


@dataclass(frozen=True, slots=True)
class Ground:
    """One block with all that its optimisation reads.

    Attributes:
        model: which holds the block.
        block: to optimise.
        steps: sampler call of each point, (N,).
        arrival: what the quantized prefix gives it.
        target: full-precision output, (N, ...).
        full: full-precision stream into it, (N, ...); None where no schedule asks for it.
        layer_targets: full-precision outputs of its layers but the last; empty likewise.
    """

    model: QuantizedModel
    block: Block
    steps: Tensor
    arrival: Arrival
    target: Tensor
    full: Tensor | None
    layer_targets: dict[str, Tensor]

    def run(self, index: Tensor, stream: Tensor | None = None) -> Any:
        """The block's output on some points, each at its own sampler call."""
        args, kwargs = self.arrival.at(index, stream)
        with self.model.clock.at(self.steps[index]):
            return self.block.run(self.model.module, args, kwargs)

    @torch.no_grad()
    def loss(self, index: Tensor, norm: float) -> float:
        """Of the block's output on these points."""
        return float(reconstruction_loss(self.run(index), self.target[index], norm))


def optimise(
    ground: Ground, learning: Learning, schedule: Schedule, generator: torch.Generator
) -> int:
    """Run the iterations; returns how many."""
    count = len(ground.target)
    size = min(schedule.batch, count)
    optimiser = Optimiser(learning.found, schedule.groups)
    layers = {name: ground.model.layers[name] for name in ground.block.layers}
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if schedule.act_drop:
            acts = [part.static for x in layers.values() for part in x.parts]
            found = [a for a in acts if a is not None] + ground.model.product_quantizers(
                ground.block.name
            )
            stack.enter_context(_dropping(found, schedule.act_drop, generator))
        seen = stack.enter_context(layer_outputs(layers, tuple(ground.layer_targets)))
        for iteration in range(schedule.iterations):
            done = iteration / schedule.iterations
            if iteration % _CHECK == 0 and _is_settled(learning, schedule, done):
                return iteration
            pressed = learning.firsts if schedule.rounding.first_part else learning.softs
            for soft in pressed:
                soft.penalty = schedule.rounding.at(done)
            index = torch.randperm(count, generator=generator)[:size]
            output = ground.run(index, _mixed(ground, index, schedule.mix, generator))
            targets = ground.layer_targets.items()
            inner = {name: (seen[name], target[index]) for name, target in targets}
            step = Step(ground.block.name, done, index, output, ground.target[index], inner)
            loss = reconstruction_loss(output, step.target, schedule.norm)
            if inner:
                loss = loss + schedule.layers * layer_loss(step, schedule.norm)
            for term in schedule.terms:
                loss = loss + term(step)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step(done)
    return schedule.iterations


def _is_settled(learning: Learning, schedule: Schedule, done: float) -> bool:
    if not learning.softs or not schedule.settled or done <= schedule.rounding.warmup:
        return False
    gaps = [(0.5 - (s.rounding().detach() - 0.5).abs()).reshape(-1) for s in learning.softs]
    return float((torch.cat(gaps) > _UNDECIDED).float().mean()) <= schedule.settled


def _mixed(
    ground: Ground, index: Tensor, share: float, generator: torch.Generator
) -> Tensor | None:
    """The stream with some of its values taken from the full-precision network."""
    if not share or ground.full is None:
        return None
    ours, theirs = ground.arrival.stream[index], ground.full[index]
    return torch.where(torch.rand(ours.shape, generator=generator) < share, theirs, ours)


@contextmanager
def _dropping(
    quantizers: list[ActQuantizer], share: float, generator: torch.Generator
) -> Iterator[None]:
    """Some values of every quantizer's input go through as they are."""

    def skip(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        plain: Tensor = args[0] if len(args) < 2 or args[1] is None else args[0] * args[1]
        chosen = torch.rand(output.shape, generator=generator) < share
        return torch.where(chosen, plain, output)

    handles = [quantizer.register_forward_hook(skip) for quantizer in quantizers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def layer_outputs(
    layers: dict[str, QuantLayer], wanted: tuple[str, ...]
) -> Iterator[dict[str, Tensor]]:
    """Outputs of the wanted layers in the pass that ran last."""
    seen: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        seen[name] = output

    handles = [layers[name].register_forward_hook(partial(note, name)) for name in wanted]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
