"""Full precision: the reference that every other row is measured against."""

from quantarena.methods.api import FP_ONLY, Method, MethodContext, MethodInfo
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.registry import register


@register("fp")
class FullPrecision(Method):
    """Quantizes nothing."""

    info = MethodInfo(
        title="Full precision", venue="-", paper="-", summary="the original network in fp32"
    )
    supports = FP_ONLY

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """The model as it is."""
        return ctx.wrap()
