"""The gate of quantized attention: float sums of codes against integer sums, module by module."""

from collections.abc import Mapping

import torch
from torch import Tensor

from quantarena.methods.core.attention import QuantAttention
from quantarena.methods.core.model import QuantizedModel
from quantarena.methods.core.points import CalibrationSet


@torch.no_grad()
def attention_parity(model: QuantizedModel, points: CalibrationSet) -> dict[str, float]:
    """Largest difference between a module's products and their integer oracle.

    The oracle sums up 64-bit integers, and shifts of logarithmic codes.

    Args:
        model: ranges set.
        points: a few calibration points; operands are those that reach each module unquantized.

    Returns:
        Max-abs difference over max-abs value of both products, by module path; infinity where a
        product is NaN.
    """
    operands: dict[str, dict[str, Tensor]] = {name: {} for name in model.attention}
    for name, quant in model.attention.items():
        quant.watch = operands[name].__setitem__
    try:
        model.run(points)
    finally:
        for quant in model.attention.values():
            quant.watch = None
    with model.clock.at(points.step):
        return {name: _gap(quant, operands[name]) for name, quant in model.attention.items()}


def _gap(quant: QuantAttention, operands: Mapping[str, Tensor]) -> float:
    """Of one module that ran on these operands.

    Raises:
        KeyError: it never ran.
    """
    found: dict[bool, tuple[Tensor, Tensor]] = {}
    before = quant.integer
    for integer in (False, True):
        quant.integer = integer
        scores = quant.scores(operands["query"], operands["key"])
        found[integer] = scores, quant.mix(operands["softmax"], operands["value"])
    quant.integer = before
    gaps = [
        float((fake - exact).abs().max() / exact.abs().max().clamp(min=1e-12))
        for fake, exact in zip(found[False], found[True], strict=True)
    ]
    worst = max(gaps)
    return worst if all(gap == gap for gap in gaps) else float("inf")
