"""Static scales for logarithmic quantizers of softmaxes (RepQ-ViT, Li et al., ICCV 2023)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.log import LogParams, LogQuantizer, log_fake_quantize
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.calibrate.watch import watch_operands

_VALUES = 1 << 16
"""Values of each softmax that its scale is chosen on."""
KEEPS = (0.999, 0.9999, 0.99999)
"""Shares of the values below the candidate scales."""


def best_log_scale(x: Tensor, like: LogQuantizer, keeps: Sequence[float] = KEEPS) -> Tensor:
    """The scale with the smallest mean squared error, (): the largest value or an order statistic.

    Args:
        x: values of at least 0, (N,).
        like: quantizer with the width and base of the grid.
        keeps: shares of the values below the order statistics.
    """
    ordered = x.sort().values
    top = len(ordered) - 1
    candidates = [ordered[top], *(ordered[min(top, int(keep * len(ordered)))] for keep in keeps)]

    def error(scale: Tensor) -> float:
        grid = LogParams(scale, like.bits, like.per_octave, like.zero_code)
        return float((log_fake_quantize(x, grid) - x).square().mean())

    smallest = torch.finfo(torch.float32).tiny
    return min((c.float().clamp(min=smallest) for c in candidates), key=error)


@torch.no_grad()
def calibrate_log_scales(model: QuantizedModel, points: CalibrationSet, batch: int = 64) -> None:
    """Set the scale of every logarithmic softmax quantizer by ``best_log_scale``.

    Args:
        model: the network; softmaxes without a logarithmic quantizer do not change.
        points: points to run, with floating-point activations and weights.
        batch: points of one forward pass.
    """
    samples: dict[str, list[Tensor]] = {}
    quota = max(1024, _VALUES // -(-len(points) // batch))

    def watch(name: str, operand: str, x: Tensor, subset: CalibrationSet) -> None:
        flat = x.flatten()
        if len(flat) > quota:
            generator = torch.Generator().manual_seed(len(samples.get(name, ())))
            drawn = torch.randint(len(flat), (quota,), generator=generator)
            flat = torch.cat([flat[drawn], flat.max().reshape(1)])
        samples.setdefault(name, []).append(flat)

    if not any(_logarithmic(products, "softmax") for products in model.attention.values()):
        return
    watch_operands(model, points, watch, wanted=_logarithmic, quantized_weights=False, batch=batch)
    for name, values in samples.items():
        quantizer = model.attention[name].quantizers["softmax"]
        assert isinstance(quantizer, LogQuantizer)
        quantizer.scale = best_log_scale(torch.cat(values), quantizer)


def _logarithmic(products: QuantAttention, operand: str) -> bool:
    """Whether the operand is a softmax with a logarithmic quantizer."""
    quantizers = products.quantizers
    return (
        operand == "softmax"
        and operand in quantizers
        and isinstance(quantizers[operand], LogQuantizer)
    )
