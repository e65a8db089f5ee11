"""Blocks in execution order: the units that reconstruction optimises one after the other.

A block is a module with one stream in and one stream out that holds at most ``limit`` quantized
layers: a residual block, a transformer block, a time-embedding MLP. It is found by watching one
forward pass, not by class names. Layers in no such module are blocks of their own. On request the
layers of the time embedding, spread over the network, are one block together (TFMQ-DM's temporal
information block, Huang et al., CVPR 2024).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantarena.methods.core.errors import Unsupported

MAX_LAYERS = 12
"""A transformer block with self- and cross-attention has ten; a stage of a U-Net has more."""

POINTWISE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "mish": F.mish,
}
"""What may lie between a time embedding and the layers that it feeds."""


@dataclass(frozen=True, slots=True)
class Tail:
    """A layer elsewhere in the network that a temporal block feeds.

    Attributes:
        name: module path.
        between: what is applied to the block's stream before it, a key of ``POINTWISE``.
    """

    name: str
    between: str


@dataclass(frozen=True, slots=True)
class Block:
    """One unit of reconstruction.

    Attributes:
        name: module path.
        layers: paths of its quantized layers, in execution order.
        calls: how often one forward pass calls it; more than once for a lone layer only.
        tails: of a temporal block, the layers that its output feeds; its outputs are theirs.
    """

    name: str
    layers: tuple[str, ...]
    calls: int = 1
    tails: tuple[Tail, ...] = ()

    def run(self, root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The block's output; of a temporal block all tails' outputs, one after the other."""
        output = root.get_submodule(self.name)(*args, **kwargs)
        if not self.tails:
            return output
        made = [root.get_submodule(t.name)(POINTWISE[t.between](output)) for t in self.tails]
        return torch.cat(made, dim=-1)


@dataclass(slots=True)
class _Seen:
    """Calls of one module in the watched pass."""

    calls: int = 0
    single: bool = True  # one stream in, one out
    first_input: Any = None  # kept where temporal layers are inside
    first_output: Any = None


def partition(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    run: Callable[[], Any],
    limit: int = MAX_LAYERS,
    temporal: Collection[str] = (),
) -> tuple[Block, ...]:
    """Cut ``model`` into blocks.

    Args:
        model: the network.
        layers: its quantized layers by module path.
        run: one forward pass.
        limit: most quantized layers in a block.
        temporal: paths of layers (time embedding and its projections) to take as one block, out
            of the blocks in which they lie.

    Returns:
        Blocks in execution order; every executed layer is in exactly one.

    Raises:
        Unsupported: the temporal layers are no module that feeds lone layers through a pointwise
            function; names the layer.
    """
    order, seen = _watch(model, layers, run, temporal)
    chosen: list[Block] = []
    taken: set[str] = set()
    wanted = [name for name in order if name in temporal]
    if wanted:
        chosen.append(_temporal_block(wanted, order, seen))
        taken |= set(wanted)
    # outermost first: a shorter path that qualifies swallows what is inside it
    for name in sorted(seen, key=lambda path: path.count(".")):
        held = [x for x in order if _inside(x, name) and x not in temporal]
        alone = seen[name].single and seen[name].calls == 1
        if alone and 1 < len(held) <= limit and not taken.intersection(held):
            chosen.append(Block(name, tuple(held)))
            taken |= set(held)
    chosen += [Block(name, (name,), seen[name].calls) for name in order if name not in taken]
    return tuple(sorted(chosen, key=lambda block: order.index(block.layers[0])))


def _inside(path: str, owner: str) -> bool:
    return path == owner or path.startswith(f"{owner}.")


def _carries_tuple(values: Mapping[str, Any] | tuple[Any, ...]) -> bool:
    items = values.values() if isinstance(values, Mapping) else values
    return any(isinstance(v, tuple | list) and any(isinstance(t, Tensor) for t in v) for v in items)


def _watch(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    run: Callable[[], Any],
    temporal: Collection[str],
) -> tuple[list[str], dict[str, _Seen]]:
    """Layers as they execute, and what flows through every module in one pass."""
    names = {module: name for name, module in model.named_modules() if name}
    order: list[str] = []
    seen: dict[str, _Seen] = {}

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        name = names[module]
        if name in layers and name not in order:
            order.append(name)
        entry = seen.setdefault(name, _Seen())
        entry.calls += 1
        entry.single &= (
            isinstance(output, Tensor) and not _carries_tuple(args) and not _carries_tuple(kwargs)
        )
        if entry.calls == 1 and any(_inside(path, name) for path in temporal):
            entry.first_input, entry.first_output = args[0] if args else None, output

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in names]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return order, seen


def _temporal_block(wanted: list[str], order: list[str], seen: Mapping[str, _Seen]) -> Block:
    """The largest module of temporal layers alone, and the lone layers that it feeds."""
    others = [x for x in order if x not in wanted]
    heads = []
    for name, entry in seen.items():
        held = [x for x in wanted if _inside(x, name)]
        usable = entry.single and entry.calls == 1 and wanted[0] in held
        if usable and not any(_inside(x, name) for x in others):
            heads.append((len(held), -name.count("."), name))
    if not heads:
        raise Unsupported(f"temporal block: {wanted[0]} is called more than once")
    name = max(heads)[2]
    stream = seen[name].first_output
    fed = [x for x in wanted if not _inside(x, name)]
    return Block(
        name,
        tuple(wanted),
        1,
        tuple(Tail(x, _between(x, stream, seen[x].first_input)) for x in fed),
    )


def _between(name: str, stream: Tensor, received: Any) -> str:
    for key, function in POINTWISE.items():
        if isinstance(received, Tensor) and torch.equal(function(stream), received):
            return key
    raise Unsupported(
        f"temporal block: the input of {name} is no pointwise function of the time embedding "
        f"(tried {', '.join(POINTWISE)})"
    )
