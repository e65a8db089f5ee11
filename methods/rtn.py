"""Round to nearest: min-max ranges, no optimisation. The baseline that any method must beat."""

from dataclasses import dataclass

from quantarena.methods.api import (
    FLOAT_WEIGHTS,
    FP_WIDTH,
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


@register("rtn")
class RoundToNearest(Method):
    """Min-max per output channel for weights, min-max per tensor for activations."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of round to nearest.

        Attributes:
            symmetric_weights: weights without zero points. At 8 bits other runtimes then skip the
                sum that takes zero points off (docs/runtimes.md).
        """

        symmetric_weights: bool = False

    options: Options

    info = MethodInfo(
        title="RTN",
        venue="-",
        paper="-",
        summary="min-max ranges, round to nearest, nothing is optimised",
    )
    supports = Capabilities(
        act_bits=(2, 3, 4, 5, 6, 7, 8, FP_WIDTH),
        most_iterations=0,
        board_bits=("w8a8", "w4a8", "w4a4", "w2a4", "w4a16"),
    )

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Find ranges from the weights and from uniformly spaced calibration points."""
        model = ctx.wrap()
        model.set_weight_ranges(minmax_range, symmetric=self.options.symmetric_weights)
        points = ctx.range_points()
        ctx.progress(0, 1)
        calibrate_activations(model, points, minmax_range, FLOAT_WEIGHTS)
        ctx.progress(1, 1)
        return model


def round_without_calibration(model: QuantizedModel) -> None:
    """Round weights to nearest, and find the ranges of activations at run time.

    Each token of a linear layer and each image of a 2-d convolution has a range of its own.

    Args:
        model: a wrapped network; changed in place, and ready to pack.
    """
    model.set_weight_ranges(minmax_range)
    for layer in model.layers.values():
        for part in layer.parts:
            if part.static is not None:
                part.use_dynamic()
    model.freeze()
