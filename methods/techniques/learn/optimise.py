"""The optimisation loop of one block."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.techniques.learn.block_problem import BlockProblem
from quantarena.methods.techniques.learn.learning import Learning
from quantarena.methods.techniques.learn.losses import TermInputs, layer_loss, reconstruction_loss
from quantarena.methods.techniques.learn.module_outputs import module_outputs
from quantarena.methods.techniques.learn.param_groups import Optimiser
from quantarena.methods.techniques.learn.schedule import Schedule

_CHECK = 20
"""Iterations between two counts of the undecided roundings."""
_UNDECIDED = 0.01
"""A rounding counts as undecided while it is further than this from both 0 and 1."""


def optimise(
    problem: BlockProblem, learning: Learning, schedule: Schedule, generator: torch.Generator
) -> int:
    """Optimise one block; returns the number of iterations that ran."""
    count = len(problem.target)
    size = min(schedule.batch, count)
    optimiser = Optimiser(learning.parameters, schedule.groups)
    layers = {name: problem.model.layers[name] for name in problem.block.layers}
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if schedule.act_drop:
            acts = [part.static for x in layers.values() for part in x.parts]
            quantizers = [a for a in acts if a is not None]
            quantizers += problem.model.product_quantizers(problem.block.name)
            stack.enter_context(_dropping(quantizers, schedule.act_drop, generator))
        latest = stack.enter_context(
            module_outputs(problem.model.module, tuple(problem.layer_targets))
        )
        for iteration in range(schedule.iterations):
            done = iteration / schedule.iterations
            if iteration % _CHECK == 0 and _is_settled(learning, schedule, done):
                return iteration
            regularised = (
                learning.first_part_roundings
                if schedule.rounding.first_part
                else learning.soft_roundings
            )
            for soft in regularised:
                soft.penalty = schedule.rounding.at((iteration + 1) / schedule.iterations)
            index = torch.randperm(count, generator=generator)[:size]
            output = problem.run(index, _mixed(problem, index, schedule.mix, generator))
            targets = problem.layer_targets.items()
            # A layer may get the rows of all points in one axis, see BlockInputs.
            layer_pairs = {name: _pair(latest[name], target[index]) for name, target in targets}
            inputs = TermInputs(
                problem.block.name,
                done,
                index,
                output,
                problem.target[index].to(output.device),
                layer_pairs,
            )
            loss = reconstruction_loss(output, inputs.target, schedule.norm)
            if layer_pairs:
                loss = loss + schedule.layers * layer_loss(inputs, schedule.norm)
            for term in schedule.terms:
                loss = loss + term(inputs)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step(done)
    return schedule.iterations


def _is_settled(learning: Learning, schedule: Schedule, done: float) -> bool:
    """Whether few enough roundings are undecided to stop."""
    if not learning.soft_roundings or not schedule.settled or done <= schedule.rounding.warmup:
        return False
    gaps = [
        (0.5 - (s.rounding().detach() - 0.5).abs()).reshape(-1) for s in learning.soft_roundings
    ]
    return float((torch.cat(gaps) > _UNDECIDED).float().mean()) <= schedule.settled


def _mixed(
    problem: BlockProblem, index: Tensor, share: float, generator: torch.Generator
) -> Tensor | None:
    """The block's stream with a random share of full-precision values; None where nothing mixes."""
    if not share or problem.full is None:
        return None
    ours, theirs = problem.inputs.stream[index], problem.full[index]
    return torch.where(_chosen(ours, share, generator), theirs, ours)


@contextmanager
def _dropping(
    quantizers: list[ActQuantizer], share: float, generator: torch.Generator
) -> Iterator[None]:
    """Let a random share of each quantizer's input pass unquantized inside the block (QDrop)."""

    def skip(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        plain: Tensor = args[0] if len(args) < 2 or args[1] is None else args[0] * args[1]
        return torch.where(_chosen(output, share, generator), plain, output)

    handles = [quantizer.register_forward_hook(skip) for quantizer in quantizers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pair(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's output in the shape of its target, and the target beside it."""
    return output.reshape(target.shape), target.to(output.device)


def _chosen(like: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A random share of places; drawn on the CPU, so that it is the same on every device."""
    return (torch.rand(like.shape, generator=generator) < share).to(like.device)
