"""The mean square of each input channel of every layer."""

import torch
from torch import Tensor

from quantarena.methods.api import CalibrationSet, QuantizedModel, QuantLayer
from quantarena.methods.techniques.calibrate.watch import watch_inputs


def input_energy(model: QuantizedModel, points: CalibrationSet) -> dict[str, Tensor]:
    """Mean square of each layer's inputs by channel, from one pass in floating point.

    Args:
        model: the wrapped network.
        points: calibration points.

    Returns:
        (K,) float64 by the name of the layer; layers that did not run are missing.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str, layer: QuantLayer, x: Tensor, subset: CalibrationSet) -> None:
        channels = x.movedim(1, -1) if layer.is_conv else x
        rows = channels.reshape(-1, channels.shape[-1])
        square = rows.square().sum(0, dtype=torch.float64)
        sums[name] = sums.get(name, 0) + square
        counts[name] = counts.get(name, 0) + len(rows)

    watch_inputs(model, points, watch, quantized_weights=False)
    return {name: total / counts[name] for name, total in sums.items()}
