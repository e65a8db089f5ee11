"""Ranges of layer inputs and attention operands, from one pass over calibration points."""

import torch
from torch import Tensor

from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.points import CalibrationSet, calls_of
from quantarena.methods.techniques.calibrate.attention import calibrate_attention
from quantarena.methods.techniques.calibrate.by_call import (
    by_call,
    is_shared,
    near_call,
    shared_inputs,
)
from quantarena.methods.techniques.calibrate.plan import DEFAULT, CalibrationPlan, reach_of
from quantarena.methods.techniques.calibrate.row_sample import RowSample, ranges_of
from quantarena.methods.techniques.calibrate.watch import watch_inputs

_VALUES = 1 << 16
"""Largest number of activation values that a range search is given; extremes come on top."""
_VALUES_CALL = 1 << 12
"""The same at least for each sampler call, where calls have ranges of their own."""


def calibrate_activations(
    model: QuantizedModel,
    points: CalibrationSet,
    search: RangeSearch,
    plan: CalibrationPlan = DEFAULT,
    *,
    batch: int = 0,
) -> None:
    """Set the static range of every layer's input and of every quantized attention operand.

    Takes one pass over the calibration points, and one more where attention is quantized. The
    search is given all values, or a random sample of them (the same in every run) and their exact
    extremes.

    Args:
        model: the network, with its weight ranges set if weights are quantized.
        points: points to run.
        search: range search.
        plan: what has a range of its own, and on which network ranges are found.
        batch: points of one forward pass; 0 as ``CalibrationSet.batches`` has it.

    Raises:
        ValueError: a sampler call without points, where the plan asks for ranges by call.
    """
    calls = calls_of(points) if plan.per_call else [0]
    reach = reach_of(len(points), len(calls), plan.least)
    most = max(_VALUES_CALL, _VALUES // len(calls))
    samples: dict[tuple[str, int], dict[int, RowSample]] = {}
    shared = set(shared_inputs(model, points)) if plan.per_call else set()

    def watch(name: str, layer: QuantLayer, x: Tensor, subset: CalibrationSet) -> None:
        if plan.only is not None and name not in plan.only:
            return
        if is_shared(x, subset):
            shared.add(name)
        own = plan.per_call and name not in shared
        for index, part in enumerate(layer.parts):
            if part.static is not None:
                of_part = samples.setdefault((name, index), {})
                for call, rows in by_call(layer.part_input(part, x), subset, own):
                    of_part.setdefault(call, RowSample(most)).add(rows.reshape(1, -1))

    watch_inputs(model, points, watch, quantized_weights=plan.quantized_weights, batch=batch)
    for (name, index), of_part in samples.items():
        quantizer = model.layers[name].parts[index].static
        assert quantizer is not None
        ranges = [
            ranges_of(
                near_call(of_part, call, reach), search, quantizer.bits, symmetric=plan.symmetric
            )
            for call in (calls if plan.per_call and name not in shared else [0])
        ]
        # An input without rows for the points has one range: it is the same at every call, and a
        # batch of several calls could not say which range it wants.
        if plan.per_call and name not in shared:
            scale = torch.stack([r.scale.reshape(()) for r in ranges])
            quantizer.set_bank(scale, torch.stack([r.zero_point.reshape(()) for r in ranges]))
        else:
            quantizer.set_params(ranges[0])
    if plan.per_call:
        model.use_schedule(points)
    if plan.only is None:
        calibrate_attention(model, points, search, plan, batch=batch)
