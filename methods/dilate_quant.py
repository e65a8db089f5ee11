"""DilateQuant: dilated weights, ranges by step, block-wise distillation (Liu et al., 2024).

A reimplementation: no official code was found. Order as in the paper: (1) weight dilation (WD),
input channels that hold no row's extreme are stretched as far as the rows' extremes allow, which
takes the same factor out of the activations; (2) the temporal parallel quantizer (TPQ), an
activation range for each sampler call, and head where attention is quantized; batches may mix
calls; (3) block-wise knowledge distillation (BKD), weights by straight-through gradients together
with all scales and zero points of a block, inputs from the quantized prefix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from quantarena.methods import hyper_parameters, published
from quantarena.methods.api import (
    SEARCHES,
    AtLeast,
    CalibrationPlan,
    Capabilities,
    Decay,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    PerCall,
    QuantizedModel,
    Schedule,
    UniformStride,
    calibrate_activations,
    mse_act_range,
    points_per_call,
    reconstruct,
    register,
)
from quantarena.methods.core.lengths import PUBLISHED_ITERATIONS
from quantarena.methods.techniques.learn.schedule import paced_groups, scaled, small_batch
from quantarena.methods.techniques.scaling.channel_scaling import dilate

WEIGHT_LENGTH, SCALE_LENGTH, ZERO_LENGTH = 200, 100, 100
"""Updates up to which each rate holds; longer runs have less, see ``schedule.paced``."""


@register("dilate_quant")
class DilateQuant(Method):
    """Weight dilation, activation ranges by sampler call, joint distillation of each block."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of DilateQuant.

        Attributes:
            dilation: stretch unsaturated input channels (WD).
            per_call: a range for each sampler call and, of attention operands, head (TPQ).
            distillation: optimise blocks (BKD).
            weight_search: range search of weights; ``minmax`` is the one that dilation leaves
                unchanged.
            batch: points an iteration where a block has up to 400 iterations; the paper's 32 where
                it has more.
            weight_lr: learning rate of weights in BKD in up to 200 iterations a block, relative to
                the layer's mean weight scale; more have less, and the published length has the
                paper's.
            scale_lr: same of weight and activation scales up to 100, relative to each parameter's
                mean.
            zero_lr: same of activation zero points up to 100, in codes.
        """

        dilation: bool = True
        per_call: bool = True
        distillation: bool = True
        weight_search: Literal["minmax", "mse", "shrink"] = "minmax"
        batch: Annotated[int, AtLeast(1)] = 8
        weight_lr: Annotated[float, AtLeast(0)] = 0.02
        scale_lr: Annotated[float, AtLeast(0)] = 5e-3
        zero_lr: Annotated[float, AtLeast(0)] = 0.01

    info = MethodInfo(
        title="DilateQuant",
        venue="ACM MM 2025",
        paper="arXiv:2409.14307",
        summary="weights dilated at no change of range, ranges by step, blocks distilled as in QAT",
        version=4,
        bibtex=(
            "@inproceedings{liu2025dilatequant, title={DilateQuant: Accurate and Efficient "
            "Quantization-Aware Training for Diffusion Models via Weight Dilation}, "
            "author={Liu, Xuewen and Li, Zhikai and Jiang, Minhao and Gu, Qingyi}, "
            "booktitle={ACM Multimedia}, year={2025}}"
        ),
        deviations=(
            "a reimplementation, no official code was found: choices that restatements of the "
            "paper leave open are options, listed in docs/methods/dilate_quant.md",
            "the inverse factor is applied in the quantize step of every layer, also where it "
            "could fold into a norm: each layer has a factor of its own",
            "below the published length learning rates are relative to the scales and fit the "
            "run; iterations follow the preset, 50 at least",
            "preset paper has the restated 5,000 iterations at 1e-4, weights included: 1e-2 is "
            "restated for weights, a hundred times as much and half a 4-bit code a step, at which "
            "they leave their full-precision values; and the step of a weight scale is at most a "
            "hundredth of it",
            "attention products stay in floating point under the uniform policy, so ranges by "
            "head are under policy published alone",
        ),
    )
    supports = Capabilities()
    published = published.DILATE_QUANT
    switches: ClassVar[Mapping[str, Any]] = {
        "dilation": False,
        "per_call": False,
        "distillation": False,
    }
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Dilate, calibrate by step, distil block by block."""
        model = ctx.wrap()
        if self.options.dilation:
            model.notes["dilation"] = dilate_layers(model)
        count = points_per_call(ctx.trajectory, ctx.effort.samples) if self.options.per_call else 0
        points = ctx.draw(PerCall(count) if count else UniformStride(ctx.effort.samples))
        model.set_weight_ranges(SEARCHES[self.options.weight_search])
        calibrate_activations(
            model,
            ctx.range_points(),
            mse_act_range,
            CalibrationPlan(per_call=self.options.per_call, per_head=self.options.per_call),
        )
        schedule = self.schedule(ctx.effort.iterations)
        if self.options.distillation and schedule.iterations:
            blocks = ctx.blocks(model, points)
            reports = reconstruct(
                model,
                blocks,
                points,
                schedule,
                acts=True,
                seed=ctx.seed,
                progress=ctx.progress,
                held_out=ctx.held_out(points),
            )
            model.notes["distillation"] = [report.note("drift") for report in reports]
        return model

    def schedule(self, iterations: int) -> Schedule:
        """The schedule of each block where a preset allows this many AdaRound iterations."""
        if iterations >= PUBLISHED_ITERATIONS:
            return hyper_parameters.DILATE_QUANT.schedule()
        count = scaled(iterations, hyper_parameters.DILATE_QUANT.updates)

        scale = (self.options.scale_lr, SCALE_LENGTH)
        rates = {
            "weight": (self.options.weight_lr, WEIGHT_LENGTH),
            "weight_scale": scale,
            "act_scale": scale,
        }
        zeros = {"act_zero": (self.options.zero_lr, ZERO_LENGTH)}
        return Schedule(
            count,
            paced_groups(rates, count, Decay.COSINE)
            | paced_groups(zeros, count, Decay.COSINE, relative=False),
            batch=small_batch(count, self.options.batch),
        )


def dilate_layers(model: QuantizedModel) -> dict[str, dict[str, float]]:
    """Dilate every layer with quantized weights, in place.

    Grouped convolutions stay as they are: their input channels have no weights in common.

    Returns:
        By layer, the share of input channels that hold an extreme and so cannot be stretched, and
        the mean factor. 1 and 1 where dilation does nothing.
    """
    activity: dict[str, dict[str, float]] = {}
    for name, layer in model.layers.items():
        if layer.groups != 1 or all(p.weight_quantizer is None for p in layer.parts):
            continue
        found = dilate(layer.weight.detach())
        layer.scale_input(found.factor)
        activity[name] = {
            "outputs": layer.weight.shape[0],
            "inputs": layer.in_channels,
            "fixed": round(float(found.fixed.float().mean()), 4),
            "mean_factor": round(float(found.factor.mean()), 4),
        }
    return activity
