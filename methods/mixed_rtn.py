"""Mixed RTN: round to nearest, with widths by layer from the error that each layer makes.

The generic baseline of policy ``budget``. (1) For each layer and each candidate width, the error
of the network's output with that layer alone quantized; (2) the widths with the smallest sum of
errors within the budget, by integer programming; (3) min-max ranges and rounding to nearest, as in
``rtn``. Under other policies it is ``rtn``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from quantarena.methods.api import (
    FLOAT_WEIGHTS,
    FP_WIDTH,
    SEARCHES,
    AtLeast,
    Bits,
    Capabilities,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    calibrate_activations,
    minmax_range,
    register,
)
from quantarena.methods.core.record.points import evenly
from quantarena.methods.techniques.widths.allocate import Allocation, allocate
from quantarena.methods.techniques.widths.layer_losses import candidates, layer_losses


@register("mixed_rtn")
class MixedRoundToNearest(Method):
    """Widths by layer under the budget, then rounding to nearest."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of mixed RTN.

        Attributes:
            mixed: choose widths under policy budget; if false, every layer has those requested.
            acts: choose activation widths too.
            steps: candidates, as differences to the requested widths; 2 to 8 bits are possible.
            points: calibration points that errors of layers are measured on.
            weight_search: range search of weights.
        """

        mixed: bool = True
        acts: bool = False
        steps: tuple[int, ...] = (-2, -1, 1, 2, 3, 4)
        points: Annotated[int, AtLeast(1)] = 32
        weight_search: Literal["minmax", "mse"] = "minmax"

    info = MethodInfo(
        title="Mixed RTN",
        venue="-",
        paper="-",
        summary="widths by layer within the budget, by integer programming; round to nearest",
    )
    supports = Capabilities(
        act_bits=(2, 3, 4, 5, 6, 7, 8, FP_WIDTH), most_iterations=0, board_bits=(), budget=True
    )
    switches: ClassVar[Mapping[str, Any]] = {"mixed": False}
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Measure layers and allocate widths, where the policy allows; then find ranges."""
        chosen = self.allocation(ctx) if self.options.mixed else None
        model = self.rounded(ctx, {} if chosen is None else chosen.widths)
        if chosen is not None:
            model.notes["allocation"] = chosen.note()
        return model

    def allocation(self, ctx: MethodContext) -> Allocation | None:
        """The widths of all free layers; None where the policy leaves no choice."""
        if ctx.budget is None:
            return None
        points = ctx.range_points()
        losses = layer_losses(
            lambda widths: self.rounded(ctx, widths, acts=self.options.acts),
            ctx.budget.layers,
            candidates(ctx.bits, self.options.steps, acts=self.options.acts),
            points.rows(evenly(len(points), self.options.points)),
            acts=self.options.acts,
            progress=ctx.progress,
        )
        return allocate(losses, ctx.budget)

    def rounded(
        self, ctx: MethodContext, widths: Mapping[str, Bits], *, acts: bool = True
    ) -> QuantizedModel:
        """The network at these widths, others as the policy assigns them; weights alone on wish."""
        model = ctx.wrap(widths=widths)
        model.set_weight_ranges(SEARCHES[self.options.weight_search])
        if acts:
            calibrate_activations(model, ctx.range_points(), minmax_range, FLOAT_WEIGHTS)
        return model
