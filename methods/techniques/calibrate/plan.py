"""How activation ranges are calibrated: what has a range of its own, and on which network."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """How the ranges of activations are calibrated. The default suits most methods.

    Attributes:
        per_call: a range for each sampler call; the points must cover all calls. Else one range
            for all calls.
        least: points that each range by call is found on at least: where a call has fewer, those of
            as many calls before and after it as make them up count too, see ``reach_of``. 0: its
            own alone, for inputs that are the same for all points of a call.
        per_head: a range for each attention head of queries, keys, values and softmax outputs.
        symmetric: fix zero points in the middle of the codes.
        quantized_weights: run the calibration points through quantized weights, whose ranges must
            then be set; else through floating-point weights.
        only: paths of the layers to calibrate; None for all, and for the attention operands.
    """

    per_call: bool = False
    least: int = 256
    per_head: bool = False
    symmetric: bool = False
    quantized_weights: bool = True
    only: frozenset[str] | None = None


DEFAULT = CalibrationPlan()
"""One affine range for each tensor, found on the network with quantized weights."""

FLOAT_WEIGHTS = CalibrationPlan(quantized_weights=False)
"""One affine range for each tensor, found on the network with floating-point weights."""


def calls_beside(points: float, least: int) -> int:
    """How many sampler calls on either side make up ``least`` points, with ``points`` at each.

    A few points of one call underestimate the range of its values; those of its neighbours are
    similar.
    """
    return max(0, math.ceil((least / points - 1) / 2))


def reach_of(points: int, calls: int, least: int) -> int:
    """``calls_beside`` with ``points`` in all, but a tenth of all calls at most.

    Calls further away are no longer similar.
    """
    return min(calls_beside(points / calls, least), calls // 10)
