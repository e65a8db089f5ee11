"""The gate of quantized attention: sums of codes against integer sums, module by module."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.attention_mode import Fake, IntegerOracle
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.network import device_of
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.visits import at_home, resident


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

    def keep(name: str, operand: str, x: Tensor) -> None:
        operands[name][operand] = at_home(x, model.attention[name])

    with model.watching({name: partial(keep, name) for name in operands}):
        model.run(points)
    gaps = {}
    for name, quant in model.attention.items():
        twin = (packed or {}).get(name)
        with model.clock.at(points.step), resident(quant, *([] if twin is None else [twin])):
            gaps[name] = _gap(quant, twin, operands[name])
    return gaps


def _gap(
    quant: QuantAttention, packed: QuantAttention | None, operands: Mapping[str, Tensor]
) -> float:
    """The largest difference of one module that ran on these operands.

    Raises:
        KeyError: it never ran.
    """
    operands = {name: x.to(device_of(quant) or x.device) for name, x in operands.items()}
    with quant.using(IntegerOracle()):
        oracle = _products(quant, operands)
    with quant.using(Fake()):
        computed = [_products(quant, operands)]
    if packed is not None:
        place = device_of(packed)
        there = {name: x.to(place or x.device) for name, x in operands.items()}
        scores, mixed = _products(packed, there)
        computed.append((scores.to(oracle[0].device), mixed.to(oracle[1].device)))
    gaps = [
        float((fake - exact).abs().max() / exact.abs().max().clamp(min=1e-12))
        for products in computed
        for fake, exact in zip(products, oracle, strict=True)
    ]
    worst = max(gaps)
    return worst if all(gap == gap for gap in gaps) else float("inf")


def _products(quant: QuantAttention, operands: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    scores = quant.scores(operands["query"], operands["key"])
    return scores, quant.mix(operands["softmax"], operands["value"])
