"""Shows layer inputs and attention operands on calibration points to a callback."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.attention_mode import Watch
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.visits import at_home

WatchInput = Callable[[str, QuantLayer, Tensor, CalibrationSet], None]
"""Called with a layer's path, the layer, its input and the points that the input belongs to."""

WatchOperand = Callable[[str, str, Tensor, CalibrationSet], None]
"""Called with a module's path, the operand's name, its values as the quantizer gets them, and the
points that they belong to."""


@torch.no_grad()
def watch_inputs(
    model: QuantizedModel,
    points: CalibrationSet,
    watch: WatchInput,
    *,
    quantized_weights: bool = True,
    batch: int = 0,
) -> None:
    """Show every layer's input to ``watch``, in one pass over the points.

    Activations are in floating point; input scales of layers are applied. A single vector is shown
    as one row.

    Args:
        model: the network.
        points: points to run.
        watch: called once for each layer and batch.
        quantized_weights: run with quantized weights.
        batch: points of one forward pass; 0 as ``CalibrationSet.batches`` has it.
    """
    current = [points]

    def watcher(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(module, QuantLayer)
            x = at_home(module.scaled(args[0]), module)
            watch(name, module, x[None] if x.dim() == 1 else x, current[0])

        return note

    handles = [layer.register_forward_pre_hook(watcher(n)) for n, layer in model.layers.items()]
    try:
        with model.using(weights=quantized_weights, acts=False):
            for subset in points.batches(batch):
                current[0] = subset
                model.run(subset)
    finally:
        for handle in handles:
            handle.remove()


def has_static_range(quant: QuantAttention, operand: str) -> bool:
    """Whether the operand's range is found beforehand, by calibration."""
    return quant.static(operand) is not None


@torch.no_grad()
def watch_operands(
    model: QuantizedModel,
    points: CalibrationSet,
    watch: WatchOperand,
    *,
    wanted: Callable[[QuantAttention, str], bool] = has_static_range,
    quantized_weights: bool = True,
    batch: int = 0,
) -> None:
    """Show attention operands to ``watch``, in one pass over the points.

    Activations are in floating point. Operands have shape (samples, heads, rows, columns) and hold
    no excluded tokens.

    Args:
        model: the network.
        points: points to run.
        watch: called once for each operand and batch.
        wanted: chooses the operands to show.
        quantized_weights: run with quantized weights.
        batch: points of one forward pass; 0 as ``CalibrationSet.batches`` has it.
    """
    current = points

    def watcher(name: str, quant: QuantAttention) -> Watch:
        def show(operand: str, x: Tensor) -> None:
            if wanted(quant, operand):
                watch(name, operand, at_home(quant.inside(operand, x), quant), current)

        return show

    watches = {name: watcher(name, quant) for name, quant in model.attention.items()}
    with model.using(weights=quantized_weights, acts=False), model.watching(watches):
        for subset in points.batches(batch):
            current = subset
            model.run(subset)
