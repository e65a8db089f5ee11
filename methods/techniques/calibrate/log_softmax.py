"""A static scale for the logarithmic quantizer of each softmax (RepQ-ViT, Li et al., ICCV 2023)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.log import LogParams, LogQuantizer, log_fake_quantize
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.calibrate.watch import watch_operands

_KEEP = 1 << 16
KEEPS = (0.999, 0.9999, 0.99999)


def best_log_scale(x: Tensor, like: LogQuantizer, keeps: Sequence[float] = KEEPS) -> Tensor:
    """The largest value or the order statistic that gives the smallest mean squared error, ().

    Args:
        x: values of at least 0, (N,).
        like: width and base of the grid.
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
    """Give every logarithmic softmax quantizer the scale that ``best_log_scale`` finds.

    Args:
        model: softmaxes without a logarithmic quantizer are left alone.
        points: to run on, in full precision.
        batch: points run at once.
    """
    kept: dict[str, list[Tensor]] = {}
    quota = max(1024, _KEEP // -(-len(points) // batch))

    def watch(name: str, operand: str, x: Tensor, subset: CalibrationSet) -> None:
        flat = x.flatten()
        if len(flat) > quota:
            generator = torch.Generator().manual_seed(len(kept.get(name, ())))
            drawn = torch.randint(len(flat), (quota,), generator=generator)
            flat = torch.cat([flat[drawn], flat.max().reshape(1)])
        kept.setdefault(name, []).append(flat)

    if not any(_logarithmic(products, "softmax") for products in model.attention.values()):
        return
    watch_operands(model, points, watch, wanted=_logarithmic, quantized_weights=False, batch=batch)
    for name, values in kept.items():
        quantizer = model.attention[name].quantizers["softmax"]
        assert isinstance(quantizer, LogQuantizer)
        quantizer.scale = best_log_scale(torch.cat(values), quantizer)


def _logarithmic(products: QuantAttention, operand: str) -> bool:
    """Whether this is a softmax with a logarithmic quantizer."""
    quantizers = products.quantizers
    return (
        operand == "softmax"
        and operand in quantizers
        and isinstance(quantizers[operand], LogQuantizer)
    )
