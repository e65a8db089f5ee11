"""Ranges by sampler call that several calls start with together and then learn apart.

QuEST finds one range for each group of consecutive calls. The releases of EfficientDM and of
MPQ-DM, which extends it, find a single one, on a few points, and copy it to all calls.
"""

from dataclasses import replace

import torch

from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.points import CalibrationSet, calls_of, evenly
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.calibrate.plan import DEFAULT, FLOAT_WEIGHTS, CalibrationPlan

INITIAL = 32
"""Samples that these releases find their activation ranges on."""


def calibrate_calls(
    model: QuantizedModel,
    points: CalibrationSet,
    search: RangeSearch,
    *,
    per_call: bool,
    copied: bool,
) -> None:
    """Set activation ranges as EfficientDM starts, with weights in floating point.

    Args:
        model: the network.
        points: points at every sampler call.
        search: range search.
        per_call: a range for each sampler call; else one for all.
        copied: those of all calls are one range, found on a few points.
    """
    if per_call and copied:
        calibrate_by_group(model, points, search, 1, FLOAT_WEIGHTS, count=INITIAL)
    else:
        plan = CalibrationPlan(quantized_weights=False, per_call=per_call)
        calibrate_activations(model, points, search, plan)


def calibrate_by_group(
    model: QuantizedModel,
    points: CalibrationSet,
    search: RangeSearch,
    groups: int,
    plan: CalibrationPlan = DEFAULT,
    *,
    count: int = 0,
) -> None:
    """Set a bank of activation ranges in which consecutive sampler calls have equal entries.

    Args:
        model: the network.
        points: points at every sampler call.
        search: range search.
        groups: largest number of groups; they are equally long, but for the last one.
        plan: on which network ranges are found; its ``per_call`` and ``least`` are not asked.
        count: number of points that ranges are found on, evenly spread over all; 0 for all.

    Raises:
        ValueError: a sampler call without points, a group without any, or no group.
    """
    if groups < 1:
        raise ValueError("sampler calls come in one group at least")
    calls = torch.tensor(calls_of(points))
    length = -(-len(calls) // groups)
    chosen = points.rows(evenly(len(points), count)) if count else points
    grouped = replace(chosen, step=chosen.step // length, schedule=None)
    calibrate_activations(model, grouped, search, replace(plan, per_call=True, least=0))
    layers = [p.static for x in model.layers.values() for p in x.parts if p.static is not None]
    for quantizer in (*layers, *model.product_quantizers()):
        if quantizer.steps and quantizer.axis is None:  # an input that all points share has one
            of_call = calls // length
            quantizer.set_bank(quantizer.scale[of_call], quantizer.zero_point[of_call])
    model.use_schedule(points)
