"""The names that the author of a method needs; a facade, nothing is defined here.

A method is a class with ``info``, ``supports`` and ``quantize``. ``quantize`` gets a
``MethodContext`` and returns a ``QuantizedModel`` with every range set; the harness does the rest
(seeds, timing, packing, parity, accounting, sampling, scoring). A complete method::

    from quantarena.methods.api import Capabilities, Method, MethodContext, MethodInfo
    from quantarena.methods.api import QuantizedModel, UniformStride, calibrate_activations
    from quantarena.methods.api import minmax_range, register

    @register("mine")
    class Mine(Method):
        info = MethodInfo(title="Mine", venue="-", paper="-", summary="min-max on 64 points")
        supports = Capabilities()

        def quantize(self, ctx: MethodContext) -> QuantizedModel:
            model = ctx.wrap()
            model.set_weight_ranges(minmax_range)
            calibrate_activations(model, ctx.draw(UniformStride(64)), minmax_range)
            return model

Put it in a file and run ``quantarena run quick --plugin mine.py --method mine``, or publish it
under the entry-point group ``quantarena.methods``. Import single names from here: a cell's
key holds the code of those names, not that of the whole facade.
"""

from quantarena.methods.contract import Method, MethodContext
from quantarena.methods.core.bits import FP_WIDTH, Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.activation import DynamicActQuantizer
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.call_counts import CallPolicy
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.steps import PerCall, UniformStride, WholeWalks, points_per_call
from quantarena.methods.info import Capabilities, MethodInfo
from quantarena.methods.options import AtLeast, MethodOptions, Within
from quantarena.methods.registry import register
from quantarena.methods.techniques.calibrate.bounds import input_bounds
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.calibrate.plan import FLOAT_WEIGHTS, CalibrationPlan
from quantarena.methods.techniques.distill.distill import Distillation, distill
from quantarena.methods.techniques.distill.teacher_walk import teacher_walk
from quantarena.methods.techniques.learn.param_groups import Decay, Group
from quantarena.methods.techniques.learn.reconstruct import reconstruct
from quantarena.methods.techniques.learn.schedule import Schedule
from quantarena.methods.techniques.points.censored_normal import CensoredNormalCalls
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_act_range, mse_range, shrink_range
from quantarena.methods.techniques.ranges.named import SEARCHES, default_range, for_activations
from quantarena.methods.techniques.scaling.channel_scaling import smooth

__all__ = [
    "FLOAT_WEIGHTS",
    "FP_WIDTH",
    "SEARCHES",
    "AtLeast",
    "Bits",
    "CalibrationPlan",
    "CalibrationSet",
    "CallPolicy",
    "Capabilities",
    "CensoredNormalCalls",
    "Decay",
    "Distillation",
    "DynamicActQuantizer",
    "Group",
    "Method",
    "MethodContext",
    "MethodInfo",
    "MethodOptions",
    "PerCall",
    "QuantLayer",
    "QuantizedModel",
    "RangeSearch",
    "Schedule",
    "UniformStride",
    "Unsupported",
    "WholeWalks",
    "Within",
    "calibrate_activations",
    "default_range",
    "distill",
    "for_activations",
    "input_bounds",
    "minmax_range",
    "mse_act_range",
    "mse_range",
    "points_per_call",
    "reconstruct",
    "register",
    "shrink_range",
    "smooth",
    "teacher_walk",
]
