"""Static scales for logarithmic quantizers of softmaxes (RepQ-ViT, Li et al., ICCV 2023)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.log import LogParams, LogQuantizer, log_fake_quantize
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.calibrate.row_sample import RowSample
from quantarena.methods.techniques.calibrate.watch import watch_operands
from quantarena.methods.techniques.ranges.percentile import quantile

_VALUES = 1 << 16
"""Largest number of values of each softmax that its scale is chosen on."""
KEEPS = (0.999, 0.9999, 0.99999)
"""Shares of the values below the candidate scales."""


def best_log_scale(
    x: Tensor, like: LogQuantizer, keeps: Sequence[float] = KEEPS, weights: Tensor | None = None
) -> Tensor:
    """The scale with the smallest mean squared error, (): the largest value or a quantile.

    Args:
        x: values of at least 0, (N,).
        like: quantizer with the width and base of the grid.
        keeps: shares of the values below the quantiles.
        weights: number of values that each value stands for, (N,); 1 by default.
    """
    counts = None if weights is None else weights[None]
    candidates = [x.max(), *(quantile(x[None], keep, counts).reshape(()) for keep in keeps)]

    def error(scale: Tensor) -> float:
        grid = LogParams(scale, like.bits, like.per_octave, like.zero_code)
        squared = (log_fake_quantize(x, grid) - x).square()
        return float(squared.mean() if weights is None else squared @ weights)

    smallest = torch.finfo(torch.float32).tiny
    return min((c.float().clamp(min=smallest) for c in candidates), key=error)


@torch.no_grad()
def calibrate_log_scales(model: QuantizedModel, points: CalibrationSet, batch: int = 0) -> None:
    """Set the scale of every logarithmic softmax quantizer by ``best_log_scale``.

    Args:
        model: the network; softmaxes without a logarithmic quantizer do not change.
        points: points to run, with floating-point activations and weights.
        batch: points of one forward pass; 0 as ``CalibrationSet.batches`` has it.
    """
    samples: dict[str, RowSample] = {}

    def watch(name: str, operand: str, x: Tensor, subset: CalibrationSet) -> None:
        samples.setdefault(name, RowSample(_VALUES)).add(x.reshape(1, -1))

    if not any(_logarithmic(products, "softmax") for products in model.attention.values()):
        return
    watch_operands(model, points, watch, wanted=_logarithmic, quantized_weights=False, batch=batch)
    for name, sample in samples.items():
        quantizer = model.attention[name].quantizers["softmax"]
        assert isinstance(quantizer, LogQuantizer)
        values, weights = sample.weighted()
        counts = None if weights is None else weights[0]
        quantizer.scale = best_log_scale(values[0], quantizer, weights=counts)


def _logarithmic(products: QuantAttention, operand: str) -> bool:
    """Whether the operand is a softmax with a logarithmic quantizer."""
    quantizers = products.quantizers
    return (
        operand == "softmax"
        and operand in quantizers
        and isinstance(quantizers[operand], LogQuantizer)
    )
