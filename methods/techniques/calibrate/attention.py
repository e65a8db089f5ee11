"""Ranges of attention operands, from one pass over calibration points."""

import torch
from torch import Tensor

from quantarena.methods.core.affine import QuantParams
from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.points import CalibrationSet, calls_of
from quantarena.methods.techniques.calibrate.by_call import by_call, near_call
from quantarena.methods.techniques.calibrate.plan import DEFAULT, CalibrationPlan, reach_of
from quantarena.methods.techniques.calibrate.row_sample import RowSample, ranges_of
from quantarena.methods.techniques.calibrate.watch import watch_operands

_VALUES = 1 << 16
"""Largest number of values of each range that its search is given; extremes come on top."""


@torch.no_grad()
def calibrate_attention(
    model: QuantizedModel,
    points: CalibrationSet,
    search: RangeSearch,
    plan: CalibrationPlan = DEFAULT,
    *,
    batch: int = 0,
) -> None:
    """Set the static range of every quantized attention operand.

    Operands are those of the network with floating-point activations. Softmax outputs are never
    negative, so their zero point is 0 and all codes are for their values; a softmax with a
    logarithmic quantizer has no range to find here. The search is given all values, or a
    random sample of them (the same in every run) and their exact extremes.

    Args:
        model: the network; nothing happens where its attention products are not quantized.
        points: points to run.
        search: range search.
        plan: what has a range of its own, and on which network ranges are found. Ranges by call
            and head together are DilateQuant's TPQ.
        batch: points of one forward pass; 0 as ``CalibrationSet.batches`` has it.

    Raises:
        ValueError: a sampler call without points, where the plan asks for ranges by call.
    """
    if not model.attention:
        return
    calls = calls_of(points) if plan.per_call else [0]
    reach = reach_of(len(points), len(calls), plan.least)
    samples: dict[tuple[str, str], dict[int, RowSample]] = {}

    def watch(name: str, operand: str, x: Tensor, subset: CalibrationSet) -> None:
        of_operand = samples.setdefault((name, operand), {})
        for call, part in by_call(x, subset, plan.per_call):
            rows = part.transpose(0, 1).flatten(1) if plan.per_head else part.reshape(1, -1)
            of_operand.setdefault(call, RowSample(_VALUES)).add(rows)

    watch_operands(model, points, watch, quantized_weights=plan.quantized_weights, batch=batch)
    for (name, operand), of_operand in samples.items():
        quantizer = model.attention[name].static(operand)
        assert quantizer is not None
        symmetric = plan.symmetric and operand != "softmax"
        ranges = [
            ranges_of(
                near_call(of_operand, call, reach), search, quantizer.bits, symmetric=symmetric
            )
            for call in calls
        ]
        scale = torch.stack([r.scale.flatten() for r in ranges])
        zero = torch.stack([r.zero_point.flatten() for r in ranges])
        _set_ranges(model.attention[name], operand, scale, zero, plan)
    if plan.per_call:
        model.use_schedule(points)


def _set_ranges(
    quant: QuantAttention, operand: str, scale: Tensor, zero: Tensor, plan: CalibrationPlan
) -> None:
    """Give a quantizer its ranges, (calls, heads); an axis that the plan ignores has length 1."""
    quantizer = quant.static(operand)
    assert quantizer is not None
    if operand == "softmax":
        zero = torch.zeros_like(zero)
    if plan.per_head:
        ids = torch.arange(scale.shape[1])
        scale, zero = (scale, zero) if plan.per_call else (scale[0], zero[0])
        quantizer.set_groups(1, ids, scale, zero)
    elif plan.per_call:
        quantizer.set_bank(scale[:, 0], zero[:, 0])
    else:
        quantizer.set_params(QuantParams(scale, zero, quantizer.bits))
