"""PTQD: undo what quantization noise has in common with the prediction (He et al., NeurIPS 2023).

The noise of a quantized network is split at every sampler call: a part that is proportional to the
prediction, ``k e``, a constant of each channel, ``mu``, and a rest. (1) ``(e' - mu) / (1 + k)``
undoes the first two. (2) The rest counts as fresh noise: a stochastic sampler adds that much less.
(3) Activations may have fewer bits at some calls than at others. Here (1) becomes an affine map by
sampler call on the layer that makes the prediction, so that it is packed and saved with it and no
sampler has to know. Any quantizer can be underneath; as in the paper it is that of Q-Diffusion.

Variant ``release`` measures as the official code does: one slope over all channels, and as bias the
mean of the whole noise instead of that of the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from quantarena.methods import hyper_parameters, published
from quantarena.methods.api import (
    CalibrationSet,
    Capabilities,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    Schedule,
    UniformStride,
    Unsupported,
    calibrate_activations,
    minmax_range,
    mse_act_range,
    mse_range,
    register,
)
from quantarena.methods.core.lengths import PUBLISHED_ITERATIONS
from quantarena.methods.core.trace.network import Role
from quantarena.methods.techniques.calibrate.plan import FLOAT_WEIGHTS
from quantarena.methods.techniques.correct.output_channels import output_channels
from quantarena.methods.techniques.correct.prediction_noise import PredictionNoise, measure_noise
from quantarena.methods.techniques.distill.student_walk import fit_walks, teacher_predictions
from quantarena.methods.techniques.learn.reconstruct import reconstruct_in_stages

CALIBRATION_STEPS = 20
ACT_SHARE = 4
"""Activation scales learn for a quarter of the iterations of weights."""


@register("ptqd")
class Ptqd(Method):
    """A base quantizer whose predictions are corrected at every sampler call."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of PTQD.

        Attributes:
            base: the quantizer underneath: that of Q-Diffusion, or round to nearest.
            correlated: undo the part of the noise that is proportional to the prediction.
            bias: undo the constant part of each channel.
            negative: also undo a negative correlation, which enlarges the rest of the noise.
            guided: measure the noise of the guided prediction; if false, that of each half.
        """

        base: Literal["q_diffusion", "rtn"] = "q_diffusion"
        correlated: bool = True
        bias: bool = True
        negative: bool = False
        guided: bool = True

    info = MethodInfo(
        title="PTQD",
        venue="NeurIPS 2023",
        paper="arXiv:2305.10657",
        summary="Q-Diffusion's quantizer; correlated noise and bias of predictions undone by call",
        version=2,
        bibtex=(
            "@inproceedings{he2023ptqd, title={PTQD: Accurate Post-Training Quantization for "
            "Diffusion Models}, author={He, Yefei and Liu, Luping and Liu, Jing and Wu, Weijia and "
            "Zhou, Hong and Zhuang, Bohan}, booktitle={NeurIPS}, year={2023}}"
        ),
        deviations=(
            "the sampler's variance stays: the harness's samplers are deterministic, where this "
            "part is void, as the paper says; fresh_noise_share computes it for others",
            "no step-aware mixed precision: a layer has its declared width at every call, and how "
            "signal-to-noise ratios are taken is not in what restates the paper",
            "the base is Q-Diffusion's recipe, trained for as long as the release trains BRECQ's "
            "at the published length and as Q-Diffusion here below it",
            "variant paper: slope and bias are fitted together, the slope within channels; "
            "negative slopes count as 0, as in the released code",
            "noise is measured along whole walks of full precision, of as many images as the "
            "points for ranges allow (paper: 1,024 samples)",
            "variant release: how it measures, not its base (BRECQ, one weight scale a layer)",
        ),
    )
    supports = Capabilities(variants=("paper", "release"))
    published = published.PTQD
    # not ``correlated``: negative slopes count as 0, and tiny random networks have no other
    switches: ClassVar[Mapping[str, Any]] = {"bias": False}
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Quantize with the base, measure its noise, put the correction on the last layer."""
        rows = whole_rows(ctx)
        model = self.quantize_base(ctx, ctx.range_points())
        if model.layers and (self.options.correlated or self.options.bias):
            recorded = ctx.walk_points(rows)
            noise = self.noise(ctx, model, recorded)
            model.notes["prediction_noise"] = noted(noise)
            correct(model, noise, recorded)
        return model

    def quantize_base(self, ctx: MethodContext, ranges: CalibrationSet) -> QuantizedModel:
        """The model before its correction.

        Args:
            ctx: the context.
            ranges: points to find ranges on.
        """
        if self.options.base == "rtn":
            model = ctx.wrap()
            model.set_weight_ranges(minmax_range)
            calibrate_activations(model, ranges, minmax_range, FLOAT_WEIGHTS)
            return model
        model = ctx.wrap(splits=True)
        points = ctx.draw(UniformStride(ctx.effort.samples, CALIBRATION_STEPS))
        blocks = ctx.blocks(model, points)
        model.set_weight_ranges(mse_range)
        model.notes["reconstruction"] = reconstruct_in_stages(
            model,
            blocks,
            points,
            self.schedules(ctx.effort.iterations),
            lambda: calibrate_activations(model, ranges, mse_act_range),
            seed=ctx.seed,
            progress=ctx.progress,
            held_out=ctx.held_out(points),
        )
        return model

    def schedules(self, iterations: int) -> tuple[Schedule, Schedule]:
        """The schedules of weights and of activation scales.

        The release's at the published length, Q-Diffusion's short ones below it.
        """
        if iterations >= PUBLISHED_ITERATIONS:
            return hyper_parameters.PTQD.schedule(), hyper_parameters.PTQD_ACTS.schedule()
        return Schedule.fast(iterations), Schedule.act_scales(round(iterations / ACT_SHARE))

    def noise(
        self, ctx: MethodContext, model: QuantizedModel, recorded: CalibrationSet
    ) -> PredictionNoise:
        """Measure the noise of the quantized model."""
        guidance: Tensor | None = None
        if self.options.guided and ctx.trajectory.halves > 1:
            walks = fit_walks(ctx.model, recorded)
            full, guidance = walks.recorded.targets, walks.step.all_guidance()
        else:
            full = teacher_predictions(ctx.model, recorded)
        return measure_noise(
            model,
            recorded,
            full,
            guidance=guidance,
            correlated=self.options.correlated,
            biased=self.options.bias,
            negative=self.options.negative,
            residual_bias=ctx.variant == "paper",
        )


def whole_rows(ctx: MethodContext) -> int:
    """Rows of each call that may be seen, all guidance halves of an image.

    Raises:
        Unsupported: not even one image.
    """
    halves, calls = ctx.trajectory.halves, ctx.trajectory.calls
    rows = min(ctx.range_samples // calls, ctx.trajectory.rows) // halves * halves
    if not rows:
        raise Unsupported(
            f"noise is measured at each of {calls} calls on all {halves} rows of an image, "
            f"{ctx.range_samples} points are allowed: take fewer steps or a larger preset"
        )
    return rows


def correct(model: QuantizedModel, noise: PredictionNoise, points: CalibrationSet) -> None:
    """Put the correction on the layer that makes the prediction.

    Args:
        model: the quantized model.
        noise: its noise.
        points: the points that it was measured on; the model is tied to their sampler calls.

    Raises:
        Unsupported: that layer stays in floating point, or is not the last thing that happens.
    """
    name = next(n for n, layer in model.graph.layers.items() if layer.role is Role.OUTPUT)
    if name not in model.layers:
        raise Unsupported(f"{name} makes the prediction and stays in floating point")
    owner = output_channels(model.original, name, points.rows(slice(0, 2)))
    gain, shift = noise.correction()
    inside = owner < gain.shape[1]  # the others are no prediction of noise
    gain = gain[:, owner.clamp(max=gain.shape[1] - 1)].where(inside, 1.0)
    shift = shift[:, owner.clamp(max=shift.shape[1] - 1)].where(inside, 0.0)
    if bool((gain == 1).all() and (shift == 0).all()):
        return  # nothing to undo
    model.layers[name].set_call_affine(gain, shift)
    model.use_schedule(points)


def noted(noise: PredictionNoise) -> dict[str, Any]:
    """The noise by sampler call, for the row."""

    def rounded(values: Tensor) -> list[float]:
        return [round(float(value), 6) for value in values]

    return {
        "slope": rounded(noise.slope),
        "bias": rounded(noise.bias.abs().amax(1)),
        "deviation": rounded(noise.deviation),
        "error": rounded(noise.error),
        "left": rounded(noise.left),
    }
