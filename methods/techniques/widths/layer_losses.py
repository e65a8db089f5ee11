"""How sensitive a network is to each layer's widths: one layer quantized, all others not.

The network runs once for each layer and candidate on every point, so the cost is
``layers x candidates x points`` forward passes of one row, and one preparation of the network for
each candidate. Ranges, smoothing and formats are those of the method that asks.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from quantarena.methods.core.bits import FP_WIDTH, Bits
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet

LossOf = Callable[[Tensor, Tensor], float]
"""Loss of an output, (N, ...), against that of full precision."""


def relative_error(output: Tensor, target: Tensor) -> float:
    """Squared error relative to the target's squares."""
    gap = (output - target).double().square().sum()
    return float(gap / target.double().square().sum().clamp(min=1e-30))


def candidates(bits: Bits, steps: Collection[int], *, acts: bool = False) -> tuple[Bits, ...]:
    """Widths around the requested ones.

    Args:
        bits: requested widths.
        steps: differences to them; widths below 2 and above 8 bits are left out.
        acts: combine weights and activations; else activations have the requested width.
    """

    def around(width: int) -> list[int]:
        if width == FP_WIDTH:
            return [width]
        return sorted({width} | {width + step for step in steps if 2 <= width + step <= 8})

    widths = around(bits.act) if acts else [bits.act]
    return tuple(Bits(weight, act) for weight in around(bits.weight) for act in widths)


@torch.no_grad()
def layer_losses(
    prepare: Callable[[Mapping[str, Bits]], QuantizedModel],
    layers: Collection[str],
    widths: Sequence[Bits],
    points: CalibrationSet,
    loss: LossOf | Mapping[str, LossOf] = relative_error,
    *,
    acts: bool = True,
    batch: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[Bits, float]]:
    """Loss of the network's output with one layer at each candidate, all others unquantized.

    Args:
        prepare: the network with these widths by layer, its ranges set.
        layers: layers to measure.
        widths: candidates.
        points: points to run.
        loss: of an output, for all layers or for each its own.
        acts: quantize the layer's input too; else its weight alone, which is enough where
            candidates differ in weight bits alone, and needs no activation ranges.
        batch: points of one forward pass; 0 as ``CalibrationSet.batches`` has it.
        progress: called with the number of measured pairs and that of all.

    Returns:
        By layer, the loss of each candidate.
    """
    losses: dict[str, dict[Bits, float]] = {name: {} for name in layers}
    for index, bits in enumerate(widths):
        model = prepare(dict.fromkeys(layers, bits))
        with model.using(weights=False, acts=False):
            target = _output(model, points, batch)
            for done, name in enumerate(layers):
                layer, of = model.layers[name], loss if callable(loss) else loss[name]
                layer.use_weight_quantizer, layer.use_act_quantizer = True, acts
                losses[name][bits] = of(_output(model, points, batch), target)
                layer.use_weight_quantizer = layer.use_act_quantizer = False
                progress(index * len(losses) + done + 1, len(widths) * len(losses))
    return losses


def _output(model: QuantizedModel, points: CalibrationSet, batch: int) -> Tensor:
    return torch.cat([model.run(subset) for subset in points.batches(batch)])
