"""Full precision: the reference that every other row is measured against."""

from quantarena.methods.api import (
    FP_WIDTH,
    Capabilities,
    Method,
    MethodContext,
    MethodInfo,
    QuantizedModel,
    register,
)


@register("fp")
class FullPrecision(Method):
    """The method that quantizes nothing."""

    info = MethodInfo(
        title="Full precision", venue="-", paper="-", summary="the original network in fp32"
    )
    supports = Capabilities(
        weight_bits=(FP_WIDTH,), act_bits=(FP_WIDTH,), most_iterations=0, board_bits=()
    )

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """The model as it is."""
        return ctx.wrap()
