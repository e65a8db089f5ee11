"""A static scale for the logarithmic quantizer of each softmax (RepQ-ViT, Li et al., ICCV 2023)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantarena.methods.core.attention import Watch
from quantarena.methods.core.log_quantizer import LogQuantizer
from quantarena.methods.core.logquant import LogParams, log_fake_quantize
from quantarena.methods.core.model import QuantizedModel
from quantarena.methods.core.points import CalibrationSet

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
    quantizers = {
        name: quantizer
        for name, products in model.attention.items()
        if isinstance(quantizer := dict(products.quantizers.items()).get("softmax"), LogQuantizer)
    }
    if not quantizers:
        return

    def watcher(name: str) -> Watch:
        def watch(operand: str, x: Tensor) -> None:
            if operand == "softmax":
                flat = model.attention[name].inside(operand, x).flatten()
                if len(flat) > quota:
                    generator = torch.Generator().manual_seed(len(kept.get(name, ())))
                    drawn = torch.randint(len(flat), (quota,), generator=generator)
                    flat = torch.cat([flat[drawn], flat.max().reshape(1)])
                kept.setdefault(name, []).append(flat)

        return watch

    for name in quantizers:
        model.attention[name].watch = watcher(name)
    try:
        with model.using(weights=False, acts=False):
            for subset in points.batches(batch):
                model.run(subset)
    finally:
        for name in quantizers:
            model.attention[name].watch = None
    for name, quantizer in quantizers.items():
        quantizer.scale = best_log_scale(torch.cat(kept[name]), quantizer)
