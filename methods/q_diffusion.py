"""Q-Diffusion: uniform steps, split shortcuts, block reconstruction (Li et al., ICCV 2023).

Order as in the paper: (1) calibration points at equally spaced steps (section 4.2); (2) weights by
AdaRound, block by block, inputs from the quantized prefix, activations in floating point; (3)
activation ranges by MSE search on the weight-quantized network, then their scales learned block by
block. Layers fed by a skip concatenation have a quantizer pair for each half (section 4.3).

Variant ``release`` is the official text-to-image script: weight ranges by 80 shrinkings, one
absolute learning rate for all activation scales, and a regulariser that forgets the second half of
a split layer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from quantarena.methods import hyper_parameters, published
from quantarena.methods.api import (
    Capabilities,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    RangeSearch,
    Schedule,
    UniformStride,
    calibrate_activations,
    mse_act_range,
    mse_range,
    register,
    shrink_range,
)
from quantarena.methods.core.lengths import PUBLISHED_ITERATIONS
from quantarena.methods.techniques.learn.reconstruct import reconstruct_in_stages

CALIBRATION_STEPS = 20
RELEASE_BATCH = 8
"""Batch of the text-to-image script; the other scripts have 32."""

Schedules = tuple[Schedule, Schedule]
"""The schedule of the weights, then that of the activation scales."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a variant of Q-Diffusion finds and learns weights and scales.

    Attributes:
        weight_search: range search of the weights.
        schedules: schedules for a number of weight iterations a block.
    """

    weight_search: RangeSearch
    schedules: Callable[[int], Schedules]


def paper_schedules(iterations: int) -> Schedules:
    """The paper's schedules at the published length, faster ones below it."""
    if iterations >= PUBLISHED_ITERATIONS:
        return hyper_parameters.Q_DIFFUSION.schedule(), hyper_parameters.Q_DIFFUSION_ACTS.schedule()
    return Schedule.fast(iterations), Schedule.act_scales(_act_iterations(iterations))


def release_schedules(iterations: int) -> Schedules:
    """The schedules of the text-to-image script: one absolute rate, one half regularised."""
    plain, acts = Schedule.adaround(iterations), Schedule.act_scales(_act_iterations(iterations))
    rounding = replace(plain.rounding, first_part=True)
    groups = hyper_parameters.Q_DIFFUSION_ACTS.groups
    return (
        replace(plain, rounding=rounding, batch=RELEASE_BATCH),
        replace(acts, groups=groups, batch=RELEASE_BATCH),
    )


def _act_iterations(iterations: int) -> int:
    return round(iterations * hyper_parameters.Q_DIFFUSION_ACTS.updates / PUBLISHED_ITERATIONS)


RECIPES = {
    "paper": Recipe(mse_range, paper_schedules),
    "release": Recipe(shrink_range, release_schedules),
}


@register("q_diffusion")
class QDiffusion(Method):
    """Split shortcuts and two-stage block reconstruction on uniformly spaced steps."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of Q-Diffusion.

        Attributes:
            split_shortcuts: a pair of quantizers for each half of a skip concatenation; if false,
                one pair for both.
            symmetric_weights: weights without zero points. At 8 bits other runtimes then skip the
                sum that takes zero points off (docs/runtimes.md).
        """

        split_shortcuts: bool = True
        symmetric_weights: bool = False

    info = MethodInfo(
        title="Q-Diffusion",
        venue="ICCV 2023",
        paper="arXiv:2302.04304",
        summary="uniform-step calibration, split shortcut quantizers, AdaRound reconstruction",
        version=6,
        bibtex=(
            "@inproceedings{li2023qdiffusion, title={Q-Diffusion: Quantizing Diffusion Models}, "
            "author={Li, Xiuyu and Liu, Yijiang and Lian, Long and Yang, Huanrui and Dong, Zhen "
            "and Kang, Daniel and Zhang, Shanghang and Keutzer, Kurt}, booktitle={ICCV}, "
            "year={2023}}"
        ),
        deviations=(
            "short runs stop when all roundings are decided; rounding learns at a larger rate "
            "under ten times the regulariser, so that it has time to decide, and activation scales "
            "learn relative to their size (paper, and preset paper: 20,000 at 1e-3 with 0.01, then "
            "5,000 at 4e-4)",
            "variant paper: both halves of a split layer are regularised (release: the first)",
            "attention products stay in floating point under the uniform policy",
            "variant release: activations asymmetric, as in the text-to-image script; the "
            "symmetric search of the others applies a grid that it did not search",
        ),
    )
    supports = Capabilities(variants=tuple(RECIPES))
    published = published.Q_DIFFUSION
    switches: ClassVar[Mapping[str, Any]] = {"split_shortcuts": False}
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Calibrate, reconstruct weights, then activation scales."""
        model = ctx.wrap(splits=self.options.split_shortcuts)
        points = ctx.draw(UniformStride(ctx.effort.samples, CALIBRATION_STEPS))
        blocks = ctx.blocks(model, points)
        model.set_weight_ranges(
            RECIPES[ctx.variant].weight_search, symmetric=self.options.symmetric_weights
        )
        model.notes["reconstruction"] = reconstruct_in_stages(
            model,
            blocks,
            points,
            self.schedules(ctx.effort.iterations, ctx.variant),
            lambda: calibrate_activations(model, ctx.range_points(), mse_act_range),
            seed=ctx.seed,
            progress=ctx.progress,
            held_out=ctx.held_out(points),
        )
        return model

    def schedules(self, iterations: int, variant: str = "paper") -> Schedules:
        """The schedules of a variant for this many weight iterations a block."""
        return RECIPES[variant].schedules(iterations)
