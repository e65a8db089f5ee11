"""How activation ranges are calibrated: what has a range of its own, and on which network."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """How the ranges of activations are calibrated. The default suits most methods.

    Attributes:
        per_call: a range for each sampler call; the points must cover all calls. Else one range
            for all calls.
        per_head: a range for each attention head of queries, keys, values and softmax outputs.
        symmetric: fix zero points in the middle of the codes.
        quantized_weights: run the calibration points through quantized weights, whose ranges must
            then be set; else through floating-point weights.
        only: paths of the layers to calibrate; None for all, and for the attention operands.
    """

    per_call: bool = False
    per_head: bool = False
    symmetric: bool = False
    quantized_weights: bool = True
    only: frozenset[str] | None = None


DEFAULT = CalibrationPlan()
"""One affine range for each tensor, found on the network with quantized weights."""

FLOAT_WEIGHTS = CalibrationPlan(quantized_weights=False)
"""One affine range for each tensor, found on the network with floating-point weights."""
