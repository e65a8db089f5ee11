"""Partition of a network into blocks, the units that reconstruction optimises one after the other.

A block is a module with one stream in and one stream out that holds at most ``limit`` quantized
layers: a residual block, a transformer block, a time-embedding MLP. Blocks are found by watching
one forward pass, not by class names. A layer outside of all blocks is a block of its own. On
request the layers of the time embedding, which are spread over the network, form blocks apart from
all others (TFMQ-DM's temporal information blocks, Huang et al., CVPR 2024): one in a U-Net, one for
each transformer block that has an embedding of its own.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.visits import on_host

MAX_LAYERS = 12
"""Largest number of layers in a block.

A transformer block with self- and cross-attention has ten, a level of a U-Net has more.
"""

POINTWISE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "mish": F.mish,
}
"""Functions that may lie between a time embedding and the layers that it feeds."""


@dataclass(frozen=True, slots=True)
class Tail:
    """A layer elsewhere in the network that a temporal block feeds.

    Attributes:
        name: module path.
        between: function applied to the block's output before the layer, a key of ``POINTWISE``.
    """

    name: str
    between: str


@dataclass(frozen=True, slots=True)
class Block:
    """One unit of reconstruction.

    Attributes:
        name: module path.
        layers: paths of its quantized layers, in execution order.
        calls: number of its calls in one forward pass; more than one only for a single layer, or
            for a temporal block that gives the same output each time.
        tails: layers that a temporal block's output feeds; the block's outputs are theirs.
    """

    name: str
    layers: tuple[str, ...]
    calls: int = 1
    tails: tuple[Tail, ...] = ()

    def modules(self, root: nn.Module) -> tuple[nn.Module, ...]:
        """The modules that ``run`` calls."""
        return tuple(root.get_submodule(n) for n in (self.name, *(t.name for t in self.tails)))

    def run(self, root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The block's output; for a temporal block the concatenated outputs of all tails."""
        output = root.get_submodule(self.name)(*args, **kwargs)
        if not self.tails:
            return output
        outputs = [root.get_submodule(t.name)(POINTWISE[t.between](output)) for t in self.tails]
        return torch.cat(outputs, dim=-1)


@dataclass(slots=True)
class _ModuleCalls:
    """The calls of one module in the watched pass."""

    calls: int = 0
    single: bool = True  # one stream in, one out
    first_input: Any = None  # stored only where temporal layers are inside
    first_output: Any = None
    repeats: bool = True  # every call gave the first one's output; likewise


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
        layers: quantized layers by module path.
        run: runs one forward pass.
        limit: largest number of quantized layers in a block.
        temporal: paths of layers (time embedding and its projections) that form blocks of their own
            and are removed from the blocks in which they lie. Each is a module of such layers with
            the single layers that it feeds through a pointwise function.

    Returns:
        Blocks in the order in which their first layers run; every executed layer is in exactly one.
        A block may hold the module of a temporal one: these two cannot be optimised in one pass.

    Raises:
        Unsupported: a temporal layer runs more than once and gives different outputs.
    """
    order, calls = _watch(model, layers, run, temporal)
    chosen: list[Block] = []
    taken: set[str] = set()
    wanted = [name for name in order if name in temporal]
    others = [name for name in order if name not in temporal]
    while wanted:
        chosen.append(_temporal_block(wanted, others, calls))
        wanted = [name for name in wanted if name not in chosen[-1].layers]
    taken |= {name for block in chosen for name in block.layers}
    # outermost first: a shorter path that qualifies swallows what is inside it
    for name in sorted(calls, key=lambda path: path.count(".")):
        inside = [x for x in order if _inside(x, name) and x not in temporal]
        once = calls[name].single and calls[name].calls == 1
        if once and 1 < len(inside) <= limit and not taken.intersection(inside):
            chosen.append(Block(name, tuple(inside)))
            taken |= set(inside)
    chosen += [Block(name, (name,), calls[name].calls) for name in order if name not in taken]
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
) -> tuple[list[str], dict[str, _ModuleCalls]]:
    """Layers in execution order, and the calls of every module in one pass."""
    names = {module: name for name, module in model.named_modules() if name}
    order: list[str] = []
    calls: dict[str, _ModuleCalls] = {}

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        name = names[module]
        if name in layers and name not in order:
            order.append(name)
        entry = calls.setdefault(name, _ModuleCalls())
        entry.calls += 1
        entry.single &= (
            isinstance(output, Tensor) and not _carries_tuple(args) and not _carries_tuple(kwargs)
        )
        if not any(_inside(path, name) for path in temporal):
            return
        if entry.calls == 1:
            entry.first_input, entry.first_output = args[0] if args else None, output
        else:
            entry.repeats &= isinstance(output, Tensor) and torch.equal(output, entry.first_output)

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in names]
    try:
        with torch.no_grad(), on_host():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return order, calls


def _temporal_block(
    wanted: Sequence[str], others: Sequence[str], calls: Mapping[str, _ModuleCalls]
) -> Block:
    """The temporal block of the first wanted layer.

    It is the largest module of wanted layers alone, with the single layers that it feeds.

    Args:
        wanted: temporal layers without a block, in execution order.
        others: layers that are not temporal.
        calls: the calls of every module.
    """
    heads = []
    for name, entry in calls.items():
        inside = [x for x in wanted if _inside(x, name)]
        usable = entry.single and entry.repeats and wanted[0] in inside
        if usable and not any(_inside(x, name) for x in others):
            heads.append((len(inside), -name.count("."), name))
    if not heads:
        raise Unsupported(
            f"temporal block: {wanted[0]} gives different outputs in one pass of the network"
        )
    name = max(heads)[2]
    inside = [x for x in wanted if _inside(x, name)]
    stream = calls[name].first_output
    fed = [(x, _between(stream, calls[x].first_input)) for x in wanted if x not in inside]
    tails = tuple(Tail(x, between) for x, between in fed if between is not None)
    layers = (*inside, *(tail.name for tail in tails))
    return Block(name, tuple(x for x in wanted if x in layers), calls[name].calls, tails)


def _between(stream: Tensor, received: Any) -> str | None:
    """The pointwise function that turns ``stream`` into what a layer received, if there is one."""
    for key, function in POINTWISE.items():
        if isinstance(received, Tensor) and torch.equal(function(stream), received):
            return key
    return None
