"""Round to nearest: min-max ranges, no optimisation. The baseline that any method must beat."""

from quantarena.methods.api import Capabilities, Method, MethodContext, MethodInfo
from quantarena.methods.core.bits import FP_WIDTH
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.registry import register
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.calibrate.plan import FLOAT_WEIGHTS
from quantarena.methods.techniques.ranges.minmax import minmax_range


@register("rtn")
class RoundToNearest(Method):
    """Min-max per output channel for weights, min-max per tensor for activations."""

    info = MethodInfo(
        title="RTN",
        venue="-",
        paper="-",
        summary="min-max ranges, round to nearest, nothing is optimised",
    )
    supports = Capabilities(act_bits=(2, 3, 4, 5, 6, 7, 8, FP_WIDTH))

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Ranges from the weights and from uniformly spaced calibration points."""
        model = ctx.wrap()
        model.set_weight_ranges(minmax_range)
        points = ctx.draw(UniformStride(ctx.effort.samples))
        ctx.progress(0, 1)
        calibrate_activations(model, points, minmax_range, FLOAT_WEIGHTS)
        ctx.progress(1, 1)
        return model
