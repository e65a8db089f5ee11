"""Q-Diffusion: uniform steps, split shortcuts, block reconstruction (Li et al., ICCV 2023).

Order as in the paper: (1) calibration points at equally spaced steps (section 4.2); (2) weights by
AdaRound, block by block, inputs from the quantized prefix, activations in floating point; (3)
activation ranges by MSE search on the weight-quantized network, then their scales learned block by
block. Layers fed by a skip concatenation have a quantizer pair for each half (section 4.3).

Variant ``release`` is the official text-to-image script: weight ranges by 80 shrinkings, one
absolute learning rate for all activation scales, and a regulariser that forgets the second half of
a split layer.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from quantarena.methods import published
from quantarena.methods.api import Capabilities, Method, MethodContext, MethodInfo
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.registry import register
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.learn.param_groups import Decay, Group
from quantarena.methods.techniques.learn.reconstruct import BlockReport, reconstruct
from quantarena.methods.techniques.learn.schedule import Schedule
from quantarena.methods.techniques.ranges.mse import mse_range, shrink_range

PAPER_ITERATIONS = 20_000
PAPER_ACT_ITERATIONS = 5_000
CALIBRATION_STEPS = 20
RELEASE_ACT_RATE = 4e-4
RELEASE_BATCH = 8
"""Of its text-to-image script; 32 in the others."""


@register("q_diffusion")
class QDiffusion(Method):
    """Split shortcuts and two-stage block reconstruction on uniformly spaced steps."""

    info = MethodInfo(
        title="Q-Diffusion",
        venue="ICCV 2023",
        paper="arXiv:2302.04304",
        summary="uniform-step calibration, split shortcut quantizers, AdaRound reconstruction",
        version=3,
        bibtex=(
            "@inproceedings{li2023qdiffusion, title={Q-Diffusion: Quantizing Diffusion Models}, "
            "author={Li, Xiuyu and Liu, Yijiang and Lian, Long and Yang, Huanrui and Dong, Zhen "
            "and Kang, Daniel and Zhang, Shanghang and Keutzer, Kurt}, booktitle={ICCV}, "
            "year={2023}}"
        ),
        deviations=(
            "iterations follow the preset and stop when all roundings are decided; rounding learns "
            "at a larger rate under ten times the regulariser, so that it has time to decide "
            "(paper: 20,000 at 1e-3 with 0.01, then 5,000 at 4e-4)",
            "variant paper: both halves of a split layer are regularised (release: the first)",
            "variant paper: activation scales learn relative to their size (release: absolutely)",
            "attention products stay in floating point under the uniform policy",
            "variant release: activations asymmetric, as in the text-to-image script; the "
            "symmetric search of the others applies a grid that it did not search",
        ),
    )
    supports = Capabilities(variants=("paper", "release"))
    published = published.Q_DIFFUSION
    switches: ClassVar[Mapping[str, Any]] = {"split_shortcuts": False}
    split_shortcuts = True

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Calibrate, reconstruct weights, then activation scales."""
        model = ctx.wrap(splits=self.split_shortcuts)
        points = ctx.draw(UniformStride(ctx.effort.samples, CALIBRATION_STEPS))
        blocks = ctx.blocks(model, points)
        released = ctx.variant == "release"
        model.set_weight_ranges(shrink_range if released else mse_range)
        weights, acts = self.schedules(ctx.effort.iterations, released=released)
        total = 2 * len(blocks)
        rounding = reconstruct(
            model,
            blocks,
            points,
            weights,
            acts=False,
            seed=ctx.seed,
            progress=lambda done, _: ctx.progress(done, total),
        )
        calibrate_activations(model, points, mse_range)
        scales = reconstruct(
            model,
            blocks,
            points,
            acts,
            acts=True,
            seed=ctx.seed + 1,
            progress=lambda done, _: ctx.progress(len(blocks) + done, total),
        )
        model.notes["reconstruction"] = {"weights": _table(rounding), "acts": _table(scales)}
        return model

    def schedules(self, iterations: int, *, released: bool = False) -> tuple[Schedule, Schedule]:
        """Weight and activation schedules for this many weight iterations a block."""
        act_iterations = round(iterations * PAPER_ACT_ITERATIONS / PAPER_ITERATIONS)
        weights, acts = Schedule.fast(iterations), Schedule.act_scales(act_iterations)
        if released:
            plain = Schedule.adaround(iterations)
            weights = replace(plain, rounding=replace(plain.rounding, first_part=True))
            acts = replace(acts, groups={"act_scale": Group(RELEASE_ACT_RATE, Decay.COSINE)})
            weights, acts = (replace(s, batch=RELEASE_BATCH) for s in (weights, acts))
        return weights, acts


def _table(reports: list[BlockReport]) -> list[dict[str, Any]]:
    return [
        {"block": r.name, "before": r.before, "after": r.after, "seconds": round(r.seconds, 3)}
        for r in reports
    ]
