"""EDA-DM: calibration by density and diversity, fine-grained reconstruction (Liu et al., 2024).

Order: (1) features of the middle attention at every sampler call say how many calibration points
each call gives (TDAC); (2) ranges by MSE search, a pair for each half of a skip concatenation; (3)
block by block, roundings and activation scales learn together towards the block's full-precision
output and, with weight gamma, those of its layers (FBR), on inputs of which half the values come
from the full-precision network while half the activations skip their quantizer (QDrop, Wei et al.,
ICLR 2022).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from quantarena.methods import published
from quantarena.methods.api import Capabilities, Method, MethodContext, MethodInfo
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.call_counts import CallPolicy
from quantarena.methods.core.record.features import FeatureTap, features, middle_module
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.core.trace.blocks import Block
from quantarena.methods.registry import register
from quantarena.methods.techniques.calibrate.averaged import calibrate_averaged
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.learn.losses import RoundingTerm
from quantarena.methods.techniques.learn.param_groups import Decay, Group
from quantarena.methods.techniques.learn.reconstruct import BlockReport, reconstruct
from quantarena.methods.techniques.learn.schedule import Schedule, scaled, small_batch
from quantarena.methods.techniques.points.tdac import TDAC
from quantarena.methods.techniques.ranges.mse import mse_range
from quantarena.methods.techniques.ranges.threshold import mse_1d_range

PAPER_ITERATIONS = 5_000
GAMMA = 0.8
MIX = DROP = 0.5
DIVERSITY_WEIGHT = 1.2
RELEASE_RADIUS = 3.0
"""Of its CIFAR settings, like all constants here; it has others by data set."""
FEATURE_ROWS = 8
"""First rows of each call whose features are looked at; the release takes 8 to 1,024."""


@register("eda_dm")
class EDADM(Method):
    """TDAC, split shortcuts and fine-grained joint reconstruction.

    Attributes:
        tdac: points by density and diversity; off, evenly spaced calls.
        layer_terms: losses of the layers inside a block; off, the block's output alone (gamma 0).
        mixing: QDrop's mixed inputs and dropped quantizers; off, the quantized prefix alone.
        joint: roundings and activation scales learn together; off, one after the other, the first
            with activations in floating point.
        split_shortcuts: a pair of quantizers for each half of a skip concatenation.
        radius: mean squared distance at which features count as near; None takes a quantile of all
            distances, ``release`` its constant.
    """

    info = MethodInfo(
        title="EDA-DM",
        venue="arXiv 2024",
        paper="arXiv:2401.04585",
        summary="calibration by density and diversity of features, fine-grained reconstruction",
        version=2,
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
            "AdaRound's regulariser decides the roundings, rates fit short runs (released code: no "
            "regulariser, 0.5 falling to zero)",
            "the ranges' zero points are free (released code: symmetric by an inverted flag)",
            "points are drawn from recorded images and repeat where a call wants more than there "
            "are",
            "release: its CIFAR settings (radius 3, gamma 0.8, rates), at our iterations and batch",
        ),
    )
    supports = Capabilities(variants=("paper", "release"))
    published = published.EDA_DM
    switches: ClassVar[Mapping[str, Any]] = {
        "tdac": False,
        "layer_terms": False,
        "mixing": False,
        "joint": False,
        "split_shortcuts": False,
    }
    tdac = True
    layer_terms = True
    mixing = True
    joint = True
    split_shortcuts = True
    radius: float | None = None

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Draw points, find ranges, reconstruct."""
        released = ctx.variant == "release"
        model = ctx.wrap(splits=self.split_shortcuts)
        points = ctx.draw(self.steps(ctx))
        blocks = ctx.blocks(model, points)
        if released:
            model.set_weight_ranges(mse_1d_range)
            calibrate_averaged(model, points, mse_1d_range, seed=ctx.seed)
        else:
            model.set_weight_ranges(mse_range)
            calibrate_activations(model, points, mse_range)
        reports = self._reconstruct(ctx, model, blocks, points)
        model.notes["reconstruction"] = [
            {
                "block": report.name,
                "before": report.before,
                "soft": report.soft,
                "after": report.after,
                "seconds": round(report.seconds, 3),
            }
            for report in reports
        ]
        return model

    def steps(self, ctx: MethodContext) -> CallPolicy:
        """Where calibration points come from."""
        if not self.tdac:
            return UniformStride(ctx.effort.samples)
        tap = FeatureTap(middle_module(ctx.graph), FEATURE_ROWS)
        found = features(ctx.model, ctx.trajectory, tap)
        radius = RELEASE_RADIUS if ctx.variant == "release" else self.radius
        return TDAC(ctx.effort.samples, found, DIVERSITY_WEIGHT, radius, repeat=True)

    def schedule(self, iterations: int, variant: str, weight_bits: int) -> Schedule:
        """Joint schedule where a preset counts this many AdaRound iterations a block."""
        count = scaled(iterations, PAPER_ITERATIONS)
        if variant == "release":
            rates = (0.5, 5e-4) if weight_bits < 8 else (5e-2, 1e-3)
            groups = {
                "rounding": Group(rates[0], Decay.COSINE),
                "act_scale": Group(rates[1], Decay.COSINE),
            }
            strength = 0.0
        else:
            groups = {
                "rounding": Group(min(0.05, 60 / max(1, count))),
                "act_scale": Group(2e-2, Decay.COSINE, relative=True),
            }
            strength = 0.1
        return Schedule(
            count,
            groups,
            batch=small_batch(count),
            rounding=RoundingTerm(strength=strength),
            layers=GAMMA if self.layer_terms else 0.0,
            mix=MIX if self.mixing else 0.0,
            act_drop=DROP if self.mixing else 0.0,
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
        if not self.joint:
            alone = [{name: group} for name, group in schedule.groups.items()]
            stages = [(replace(schedule, groups=g), i > 0) for i, g in enumerate(alone)]
        reports: list[BlockReport] = []

        def progress(done: int, _: int) -> None:
            ctx.progress(len(reports) + done, len(stages) * len(blocks))

        for stage, (chosen, acts) in enumerate(stages):
            reports += reconstruct(
                model, blocks, points, chosen, acts=acts, seed=ctx.seed + stage, progress=progress
            )
        return reports
