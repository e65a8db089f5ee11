"""Blocks in execution order: the units that reconstruction optimises one after the other.

A block is a module with one stream in and one stream out that holds at most ``limit`` quantized
layers: a residual block, a transformer block, a time-embedding MLP. It is found by watching one
forward pass, not by class names. Layers in no such module are blocks of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MAX_LAYERS = 12
"""A transformer block with self- and cross-attention has ten; a stage of a U-Net has more."""


@dataclass(frozen=True, slots=True)
class Block:
    """One unit of reconstruction.

    Attributes:
        name: module path.
        layers: paths of its quantized layers, in execution order.
    """

    name: str
    layers: tuple[str, ...]


def _carries_tuple(values: Mapping[str, Any] | tuple[Any, ...]) -> bool:
    items = values.values() if isinstance(values, Mapping) else values
    return any(isinstance(v, tuple | list) and any(isinstance(t, Tensor) for t in v) for v in items)


def partition(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    run: Callable[[], Any],
    limit: int = MAX_LAYERS,
) -> tuple[Block, ...]:
    """Cut ``model`` into blocks.

    Args:
        model: the network.
        layers: its quantized layers by module path.
        run: one forward pass.
        limit: most quantized layers in a block.

    Returns:
        Blocks in execution order; every executed layer is in exactly one.
    """
    names = {module: name for name, module in model.named_modules()}
    layer_names = {module: name for name, module in layers.items()}
    inside = {
        name: {layer for layer in layers if layer == name or layer.startswith(f"{name}.")}
        for name in names.values()
        if name
    }
    order: list[str] = []  # quantized layers as they execute
    streams: dict[str, bool] = {}  # module path -> one stream in, one out, called once

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        name = names[module]
        if module in layer_names and name not in order:
            order.append(name)
        single = (
            isinstance(output, Tensor) and not _carries_tuple(args) and not _carries_tuple(kwargs)
        )
        streams[name] = single and name not in streams

    handles = [m.register_forward_hook(note, with_kwargs=True) for m, n in names.items() if n]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    taken: set[str] = set()
    blocks: list[Block] = []
    # outermost first: a shorter path that qualifies swallows what is inside it
    for name in sorted(streams, key=lambda path: path.count(".")):
        held = inside[name] & set(order)
        if streams[name] and 1 < len(held) <= limit and not held & taken:
            blocks.append(Block(name, tuple(sorted(held, key=order.index))))
            taken |= held
    blocks += [Block(name, (name,)) for name in order if name not in taken]
    return tuple(sorted(blocks, key=lambda block: order.index(block.layers[0])))
