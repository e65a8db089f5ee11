"""EDA-DM: calibration by density and diversity, fine-grained reconstruction (Liu et al., 2024).

Order: (1) features of the middle attention at every sampler call say how many calibration points
each call gives (TDAC); (2) ranges by MSE search, a pair for each half of a skip concatenation; (3)
block by block, roundings and activation scales learn together towards the block's full-precision
output and, with weight gamma, those of its layers (FBR), on inputs of which half the values come
from the full-precision network while half the activations skip their quantizer (QDrop, Wei et al.,
ICLR 2022).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from quantarena.methods import hyper_parameters, published
from quantarena.methods.api import (
    AtLeast,
    CalibrationSet,
    CallPolicy,
    Capabilities,
    Decay,
    Group,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    RangeSearch,
    Schedule,
    UniformStride,
    for_activations,
    mse_range,
    reconstruct,
    register,
)
from quantarena.methods.core.record.features import (
    FeatureTap,
    features,
    middle_module,
    modules_without_images,
)
from quantarena.methods.core.trace.blocks import Block
from quantarena.methods.techniques.calibrate.averaged import Calibrate, all_at_once, averaged
from quantarena.methods.techniques.learn.losses import RoundingTerm
from quantarena.methods.techniques.learn.reconstruct import BlockReport
from quantarena.methods.techniques.learn.schedule import (
    ACT_SCALE_LENGTH,
    ACT_SCALE_RATE,
    paced,
    paced_groups,
    scaled,
    small_batch,
)
from quantarena.methods.techniques.points.tdac import TDAC
from quantarena.methods.techniques.ranges.threshold import mse_1d_range

GAMMA = 0.8
MIX = DROP = 0.5
DIVERSITY_WEIGHT = 1.2
RELEASE_RADIUS = 3.0
"""The radius of the CIFAR settings, as all constants here; the release has others by data set."""
FEATURE_ROWS = 8
"""Number of rows of each call whose features are computed; the release takes 8 to 1,024."""

Rates = Callable[[int, int], Mapping[str, Group]]
"""Learning rates from the iterations of a block and the bits of the weights."""


def paper_rates(iterations: int, weight_bits: int) -> Mapping[str, Group]:
    """The released rates at the published length, below it rates that fit short runs."""
    if iterations >= hyper_parameters.EDA_DM.updates:
        return release_rates(iterations, weight_bits)
    return {
        "rounding": Group(paced(0.05, 1200, iterations)),
        **paced_groups({"act_scale": (ACT_SCALE_RATE, ACT_SCALE_LENGTH)}, iterations, Decay.COSINE),
    }


def release_rates(iterations: int, weight_bits: int) -> Mapping[str, Group]:
    """Rates of the released CIFAR settings."""
    return (hyper_parameters.EDA_DM if weight_bits < 8 else hyper_parameters.EDA_DM_8_BITS).groups


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a variant of EDA-DM calibrates and learns.

    Attributes:
        search: range search of weights; activations have its form for them.
        calibrate: sets activation ranges from a model, its points, a range search and a seed.
        rates: learning rates.
        rounding: weight of AdaRound's regulariser.
        radius: mean squared distance at which features count as near; None takes the option's.
    """

    search: RangeSearch
    calibrate: Calibrate
    rates: Rates
    rounding: float
    radius: float | None = None


RECIPES = {
    "paper": Recipe(mse_range, all_at_once, paper_rates, 0.1),
    "release": Recipe(mse_1d_range, averaged, release_rates, 0.0, RELEASE_RADIUS),
}


@register("eda_dm")
class EDADM(Method):
    """TDAC, split shortcuts and fine-grained joint reconstruction."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of EDA-DM.

        Attributes:
            tdac: choose points by density and diversity; if false, at evenly spaced calls.
            layer_terms: add the losses of the layers inside a block; if false, only the block's
                output counts (gamma 0).
            mixing: mix inputs and drop quantizers as QDrop does; if false, learn on the quantized
                prefix alone.
            joint: learn roundings and activation scales together; if false, one after the other,
                the first with activations in floating point.
            split_shortcuts: a pair of quantizers for each half of a skip concatenation.
            radius: mean squared distance at which features count as near; none takes a quantile of
                all distances. Variant release always takes its constant.
        """

        tdac: bool = True
        layer_terms: bool = True
        mixing: bool = True
        joint: bool = True
        split_shortcuts: bool = True
        radius: Annotated[float | None, AtLeast(0)] = None

    info = MethodInfo(
        title="EDA-DM",
        venue="arXiv 2024",
        paper="arXiv:2401.04585",
        summary="calibration by density and diversity of features, fine-grained reconstruction",
        version=5,
        bibtex=(
            "@article{liu2024edadm, title={EDA-DM: Enhanced Distribution Alignment for "
            "Post-Training Quantization of Diffusion Models}, author={Liu, Xuewen and Li, Zhikai "
            "and Xiao, Junrui and Chen, Mengjuan and Li, Jianquan and Gu, Qingyi}, "
            "journal={arXiv:2401.04585}, year={2024}}"
        ),
        deviations=(
            "a quarter of the preset's iterations a block, 50 at least (paper: 5,000, where "
            "AdaRound has 20,000), batch 4 up to 400 of them (paper: 32)",
            "the distance that counts as near is a quantile of all distances (paper: 3.0 or 0.3 by "
            "data set); features are those of 8 images",
            "below the published length AdaRound's regulariser decides the roundings and rates fit "
            "short runs (released code, and preset paper: no regulariser, 0.5 falling to zero)",
            "the ranges' zero points are free (released code: symmetric by an inverted flag)",
            "points are drawn from recorded images and repeat where a call wants more than there "
            "are",
            "release: its CIFAR settings (radius 3, gamma 0.8, rates), at our iterations and batch",
        ),
    )
    supports = Capabilities(variants=tuple(RECIPES))
    published = published.EDA_DM
    switches: ClassVar[Mapping[str, Any]] = {
        "tdac": False,
        "layer_terms": False,
        "mixing": False,
        "joint": False,
        "split_shortcuts": False,
    }
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Draw points, find ranges, reconstruct."""
        recipe = RECIPES[ctx.variant]
        model = ctx.wrap(splits=self.options.split_shortcuts)
        steps = self.steps(ctx)
        points = ctx.draw(steps(ctx.effort.samples))
        blocks = ctx.blocks(model, points)
        model.set_weight_ranges(recipe.search)
        points_of_ranges = ctx.range_points(steps(ctx.range_samples))
        recipe.calibrate(model, points_of_ranges, for_activations(recipe.search), ctx.seed)
        reports = self._reconstruct(ctx, model, blocks, points)
        model.notes["reconstruction"] = [report.note("soft") for report in reports]
        return model

    def steps(self, ctx: MethodContext) -> Callable[[int], CallPolicy]:
        """The policy that draws calibration points, for a number of them."""
        if not self.options.tdac:
            return UniformStride
        without = modules_without_images(ctx.model, ctx.trajectory)
        tap = FeatureTap(middle_module(ctx.graph, without), FEATURE_ROWS)
        found = features(ctx.model, ctx.trajectory, tap)
        fixed = RECIPES[ctx.variant].radius
        radius = self.options.radius if fixed is None else fixed
        return lambda samples: TDAC(samples, found, DIVERSITY_WEIGHT, radius, repeat=True)

    def schedule(self, iterations: int, variant: str, weight_bits: int) -> Schedule:
        """The joint schedule where a preset allows this many AdaRound iterations a block."""
        published = hyper_parameters.EDA_DM
        count, recipe = scaled(iterations, published.updates), RECIPES[variant]
        return Schedule(
            count,
            recipe.rates(count, weight_bits),
            batch=small_batch(count),
            rounding=RoundingTerm(
                strength=recipe.rounding if count < published.updates else published.rounding
            ),
            layers=GAMMA if self.options.layer_terms else 0.0,
            mix=MIX if self.options.mixing else 0.0,
            act_drop=DROP if self.options.mixing else 0.0,
        )

    def _reconstruct(
        self,
        ctx: MethodContext,
        model: QuantizedModel,
        blocks: tuple[Block, ...],
        points: CalibrationSet,
    ) -> list[BlockReport]:
        schedule = self.schedule(ctx.effort.iterations, ctx.variant, ctx.bits.weight)
        stages = [(schedule, True)]
        if not self.options.joint:
            alone = [{name: group} for name, group in schedule.groups.items()]
            stages = [(replace(schedule, groups=g), i > 0) for i, g in enumerate(alone)]
        reports: list[BlockReport] = []

        def progress(done: int, _: int) -> None:
            ctx.progress(len(reports) + done, len(stages) * len(blocks))

        for stage, (chosen, acts) in enumerate(stages):
            reports += reconstruct(
                model,
                blocks,
                points,
                chosen,
                acts=acts,
                seed=ctx.seed + stage,
                progress=progress,
                held_out=ctx.held_out(points),
            )
        return reports
