"""Is a partition what it claims to be? Run it block by block and compare bit for bit.

Every block runs alone on what arrived at it in one watched pass. Then the network runs with those
outputs in the blocks' places. Nothing a block needs may reach it by another way than its arguments,
and the rest of the network must add nothing but its own unquantized arithmetic.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from quantarena.methods.core.nested import map_tensors, same
from quantarena.methods.core.trace.blocks import Block


def cloned(value, where):
    """A copy whose tensors share no memory with ``value``."""
    return map_tensors(value, lambda tensor: tensor.detach().clone(), where)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay found.

    Attributes:
        expected: the network's output.
        output: the same from the blocks' replayed outputs.
        broken: blocks whose replayed output, or whose input in the replayed network, differs.
    """

    expected: Any
    output: Any
    broken: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Every block and the whole are equal, bit for bit."""
        return not self.broken and same(self.expected, self.output, "network output")


@dataclass(slots=True)
class _Calls:
    """What one module was given and gave, call by call."""

    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)


@torch.no_grad()
def _replay(model: nn.Module, blocks: Sequence[Block], run: Callable[[], Any]) -> Replayed:
    """Run the network block by block from recorded inputs.

    Args:
        model: the network.
        blocks: its partition.
        run: one forward pass; returns the output.

    Raises:
        Unsupported: a block takes or gives something that could hide a tensor; names the block.
    """
    tails = [tail.name for block in blocks for tail in block.tails]
    calls = {name: _Calls() for name in [*(block.name for block in blocks), *tails]}
    with _recording(model, calls):
        expected = run()
    made = {block.name: _alone(model, block, calls[block.name]) for block in blocks}
    broken = [b.name for b in blocks if not _agrees(b, made[b.name], calls)]
    with _standing_in(model, blocks, made, calls, broken):
        output = run()
    return Replayed(expected, output, tuple(dict.fromkeys(broken)))


def _alone(model: nn.Module, block: Block, calls: _Calls) -> list[Any]:
    return [
        block.run(model, cloned(args, block.name), cloned(kwargs, block.name))
        for args, kwargs in calls.inputs
    ]


def _agrees(block: Block, made: list[Any], calls: dict[str, _Calls]) -> bool:
    """Whether the block's replayed outputs are those of the watched pass."""
    if block.tails:
        seen = torch.cat([calls[tail.name].outputs[0] for tail in block.tails], dim=-1)
        return same(made, [seen], block.name)
    return same(made, calls[block.name].outputs, block.name)


@contextmanager
def _recording(model: nn.Module, calls: dict[str, _Calls]) -> Iterator[None]:
    """Note what the named modules are given and give; what changes in place later is copied."""

    def before(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[name].inputs.append((cloned(args, name), cloned(kwargs, name)))

        return note

    def after(name: str) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls[name].outputs.append(cloned(output, name))

        return note

    handles = []
    for name in calls:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(module.register_forward_hook(after(name), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _standing_in(
    model: nn.Module,
    blocks: Sequence[Block],
    made: dict[str, list[Any]],
    calls: dict[str, _Calls],
    broken: list[str],
) -> Iterator[None]:
    """Blocks give their replayed outputs instead of running; odd inputs are added to ``broken``."""

    def stand_in(name: str) -> Callable[..., Any]:
        turn = iter(zip(calls[name].inputs, made[name], strict=True))

        def forward(*args: Any, **kwargs: Any) -> Any:
            recorded, output = next(turn)
            if not same((args, kwargs), recorded, name):
                broken.append(name)
            return output

        return forward

    replaced = [model.get_submodule(b.name) for b in blocks if not b.tails]
    for module, block in zip(replaced, [b for b in blocks if not b.tails], strict=True):
        module.forward = stand_in(block.name)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


@pytest.fixture
def replay():
    return _replay
