"""Weight ranges that minimise the error of the layer's output instead of that of the weight.

An error of a weight costs as much as the input that it is multiplied by. If the input channels of
a layer are not correlated, the expected squared error of an output is the sum over the channels of
``E[x^2] * (w - q(w))^2``. So the range of each output channel is searched with each weight's error
counted by the mean square of its input channel, measured on the calibration points. AWQ
(arXiv:2306.00978) makes the same observation for language models, and scales channels instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from quantarena.methods.api import (
    Capabilities,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    QuantLayer,
    UniformStride,
    Within,
    calibrate_activations,
    mse_act_range,
    mse_range,
)
from weighted_ranges.energy import input_energy


class WeightedRanges(Method):
    """Rounding to nearest, with weight ranges weighted by the energy of the inputs."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of weighted ranges.

        Attributes:
            power: exponent of a channel's mean square; 1 is the formula, 0 counts all equally.
        """

        power: Annotated[float, Within(0, 2)] = 1.0

    info = MethodInfo(
        title="Weighted ranges",
        venue="example",
        paper="-",
        summary="weight ranges by the squared error of outputs, not of weights",
    )
    supports = Capabilities(board_bits=("w8a8", "w4a8", "w4a4"))
    switches: ClassVar[Mapping[str, Any]] = {"power": 0.0}
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Measure the inputs, find the ranges of weights, then those of activations."""
        model = ctx.wrap()
        points = ctx.draw(UniformStride(ctx.effort.samples))
        energy = input_energy(model, points)
        for name, layer in model.layers.items():
            set_ranges(layer, energy.get(name), self.options.power)
        calibrate_activations(model, points, mse_act_range)
        return model


def set_ranges(layer: QuantLayer, energy: Tensor | None, power: float) -> None:
    """Set the weight ranges of a layer.

    Args:
        layer: the layer; each of its parts has a slice of the input channels.
        energy: (K,) mean square of its inputs, None where it did not run.
        power: exponent of the energy.
    """
    for part in layer.parts:
        if part.weight_quantizer is None:
            continue
        weight = layer.part_weight(part)
        search = partial(mse_range, norm=2.0)
        mine = None if energy is None else energy[part.start : part.stop].clamp(min=0) ** power
        # a grouped convolution's weight has the channels of one group only: it counts all equally
        if mine is not None and len(mine) == weight.shape[1] and float(mine.sum()) > 0:
            share = (mine / mine.mean()).to(weight.dtype)
            shape = (1, -1, *[1] * (weight.dim() - 2))
            search = partial(search, weights=torch.broadcast_to(share.view(shape), weight.shape))
        part.weight_quantizer.find_params(weight, search, symmetric=False)
