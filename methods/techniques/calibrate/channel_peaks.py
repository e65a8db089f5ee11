"""Average peaks of layers' input channels (ViDiT-Q, Zhao et al., ICLR 2025).

A point's peak is the largest magnitude of a channel over the point's tokens or pixels. Peaks are
averaged over the points of a sampler call and then, from call to call, by an exponential moving
average. So a single outlier is one of many values, not the whole statistic.
"""

import torch
from torch import Tensor

from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.calibrate.bounds import channel_axis
from quantarena.methods.techniques.calibrate.by_call import by_call, shared_inputs
from quantarena.methods.techniques.calibrate.watch import watch_inputs
from quantarena.methods.techniques.ranges.ema import EmaRange


def mean_peaks(
    model: QuantizedModel, points: CalibrationSet, *, momentum: float, batch: int = 64
) -> dict[str, Tensor]:
    """Average peaks of the input channels of every layer, (K,) each, from one full-precision pass.

    Args:
        model: the network; input scales of its layers are applied.
        points: points to run; calls without points are skipped.
        momentum: weight of the earlier calls, in [0, 1).
        batch: points of one forward pass.
    """
    shared = shared_inputs(model, points)
    peak_sums: dict[str, dict[int, tuple[Tensor, int]]] = {}

    def watch(name: str, layer: QuantLayer, x: Tensor, subset: CalibrationSet) -> None:
        calls = peak_sums.setdefault(name, {})
        for call, rows in by_call(x, subset, name not in shared):
            peaks = rows.abs().movedim(channel_axis(layer), -1)
            peaks = peaks.reshape(len(rows), -1, peaks.shape[-1]).amax(1)
            total, count = calls.get(call, (torch.zeros_like(peaks[0]), 0))
            calls[call] = total + peaks.sum(0), count + len(peaks)

    watch_inputs(model, points, watch, quantized_weights=False, batch=batch)
    averages: dict[str, Tensor] = {}
    for name, calls in peak_sums.items():
        average = EmaRange(momentum)
        for call in sorted(calls):
            total, count = calls[call]
            average = average.update(total / count, total / count)
        assert average.high is not None
        averages[name] = average.high
    return averages
