"""The gate of quantized attention: sums of codes against integer sums, module by module."""

from collections.abc import Mapping

import torch
from torch import Tensor

from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet


@torch.no_grad()
def attention_parity(
    model: QuantizedModel,
    points: CalibrationSet,
    packed: Mapping[str, QuantAttention] | None = None,
) -> dict[str, float]:
    """Largest difference between a module's products and their integer oracle.

    The oracle sums up 64-bit integers, and shifts of logarithmic codes. Both products are compared
    by themselves, on the same operands: one after the other, a last bit of the softmax could move a
    code.

    Args:
        model: ranges set.
        points: a few calibration points; operands are those that reach each module unquantized.
        packed: the same modules as they compute when packed, to compare these too; they read the
            clock of ``model``.

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
        return {
            name: _gap(quant, (packed or {}).get(name), operands[name])
            for name, quant in model.attention.items()
        }


def _gap(
    quant: QuantAttention, packed: QuantAttention | None, operands: Mapping[str, Tensor]
) -> float:
    """Of one module that ran on these operands.

    Raises:
        KeyError: it never ran.
    """
    before, quant.integer = quant.integer, True
    oracle = _products(quant, operands)
    quant.integer = False
    found = [_products(one, operands) for one in (quant, packed) if one is not None]
    quant.integer = before
    gaps = [
        float((fake - exact).abs().max() / exact.abs().max().clamp(min=1e-12))
        for products in found
        for fake, exact in zip(products, oracle, strict=True)
    ]
    worst = max(gaps)
    return worst if all(gap == gap for gap in gaps) else float("inf")


def _products(quant: QuantAttention, operands: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    scores = quant.scores(operands["query"], operands["key"])
    return scores, quant.mix(operands["softmax"], operands["value"])
