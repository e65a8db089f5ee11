"""TFMQ-DM: what depends on time alone is reconstructed apart (Huang et al., CVPR 2024).

The time embedding and its projections see the timestep and never the sample, yet reconstruction by
blocks fits the projections through outputs that depend on the sample. (1) They form blocks of their
own, temporal information blocks, whose roundings are learned together towards the temporal features
of full precision, over the finite set of timesteps that the sampler visits (TIAR); (2) all other
blocks are reconstructed with the temporal layers as they are; (3) inputs of temporal layers have a
range for each sampler call (FSC), for there are only as many of them as calls; other inputs have
one range, averaged over batches.

Variant ``release`` is the official code: temporal blocks are reconstructed on the calibration
points of all others, and every activation has a range for each sampler call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from quantarena.methods import hyper_parameters, published
from quantarena.methods.api import (
    CalibrationPlan,
    CalibrationSet,
    Capabilities,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    Schedule,
    UniformStride,
    calibrate_activations,
    minmax_range,
    mse_act_range,
    mse_range,
    reconstruct,
    register,
)
from quantarena.methods.core.lengths import PUBLISHED_ITERATIONS
from quantarena.methods.core.trace.blocks import Block
from quantarena.methods.core.trace.network import Role
from quantarena.methods.techniques.calibrate.averaged import calibrate_averaged
from quantarena.methods.techniques.learn.reconstruct import BlockReport

TEMPORAL_ROLES = (Role.TIME_EMBED, Role.EMB_PROJ, Role.ADALN)
CALIBRATION_STEPS = 20
MOMENTUM, WINDOWS = 0.95, 20
"""Momentum of the ranges that are averaged; as many batches as the average remembers."""
FEWEST, WINDOW = 5, 256
"""Batches where there are few points, and points of a batch where there are enough: the values of
256 images of 16x16 are those of the paper's 16 images of 64x64."""


@register("tfmq_dm")
class TfmqDm(Method):
    """Temporal information blocks, and a range for each sampler call inside them."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of TFMQ-DM.

        Attributes:
            temporal_blocks: reconstruct the temporal layers in blocks of their own; if false, in
                the blocks in which they lie.
            finite_set: a range for each sampler call of the temporal layers' inputs; if false, they
                are calibrated as all others.
            averaged: average the other ranges over batches; if false, search one on all points.
        """

        temporal_blocks: bool = True
        finite_set: bool = True
        averaged: bool = True

    info = MethodInfo(
        title="TFMQ-DM",
        venue="CVPR 2024",
        paper="arXiv:2311.16503",
        summary="time embedding reconstructed apart over all timesteps, its ranges by sampler call",
        bibtex=(
            "@inproceedings{huang2024tfmqdm, title={TFMQ-DM: Temporal Feature Maintenance "
            "Quantization for Diffusion Models}, author={Huang, Yushi and Gong, Ruihao and Liu, "
            "Jing and Chen, Tianlong and Liu, Xianglong}, booktitle={CVPR}, year={2024}}"
        ),
        deviations=(
            "below the published length iterations follow the preset and stop when all roundings "
            "are decided; rounding learns at a larger rate under ten times the regulariser (paper: "
            "20,000 at 1e-3 with 0.01)",
            "where an embedding sees the class too, as in a diffusion transformer, its temporal "
            "features are no finite set of one vector a call: they are learned and calibrated on "
            "several rows of each call",
            "features are not cached (the journal version's choice by disturbance): every method "
            "runs the same layers, and the policy's widths are observed in them",
            "attention products stay in floating point under the uniform policy",
            "ranges are averaged over 5 to 20 batches of up to 256 points, which hold as many "
            "values as the paper's 16 larger images: those of few small images are so tight that "
            "they clip other images' values",
            "variant release: one search on all recorded points of a call (its code: a search on "
            "16 of them, then a running average)",
        ),
    )
    supports = Capabilities(variants=("paper", "release"))
    published = published.TFMQ_DM
    switches: ClassVar[Mapping[str, Any]] = {
        "temporal_blocks": False,
        "finite_set": False,
        "averaged": False,
    }
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Reconstruct temporal blocks, then all others; calibrate."""
        model = ctx.wrap()
        points = ctx.draw(UniformStride(ctx.effort.samples, CALIBRATION_STEPS))
        recorded = ctx.range_points()
        temporal = frozenset(
            name for name in model.layers if ctx.graph.layers[name].role in TEMPORAL_ROLES
        )
        blocks = ctx.blocks(model, points, temporal if self.options.temporal_blocks else ())
        model.set_weight_ranges(mse_range)
        model.notes["reconstruction"] = [
            report.note()
            for report in self._reconstruct(ctx, model, blocks, temporal, points, recorded)
        ]
        if ctx.variant == "release":
            calibrate_activations(model, recorded, mse_act_range, CalibrationPlan(per_call=True))
            return model
        if self.options.averaged:
            few = spread(recorded, WINDOWS * WINDOW)
            batches = min(WINDOWS, max(FEWEST, len(few) // WINDOW))
            calibrate_averaged(
                model,
                few,
                mse_act_range,
                seed=ctx.seed,
                momentum=min(MOMENTUM, 1 - 1 / batches),
                window=-(-len(few) // batches),
            )
        else:
            calibrate_activations(model, recorded, mse_act_range)
        if self.options.finite_set and temporal:
            plan = CalibrationPlan(per_call=True, least=0, only=temporal)
            calibrate_activations(model, recorded, minmax_range, plan)
        return model

    def schedule(self, iterations: int) -> Schedule:
        """The schedule of a block: the paper's at the published length, a faster one below it."""
        if iterations >= PUBLISHED_ITERATIONS:
            return hyper_parameters.TFMQ_DM.schedule()
        return Schedule.fast(iterations)

    def _reconstruct(
        self,
        ctx: MethodContext,
        model: QuantizedModel,
        blocks: Sequence[Block],
        temporal: frozenset[str],
        points: CalibrationSet,
        recorded: CalibrationSet,
    ) -> list[BlockReport]:
        """Reconstruct weights: temporal blocks first, the others on top of them."""
        schedule = self.schedule(ctx.effort.iterations)
        apart = [block for block in blocks if temporal.issuperset(block.layers)]
        rest = [block for block in blocks if block not in apart]
        finite = spread(recorded, ctx.effort.samples) if ctx.variant == "paper" else points
        # one vector for each row: a full batch costs next to nothing
        stages = (
            (apart, finite, replace(schedule, batch=hyper_parameters.TFMQ_DM.batch)),
            (rest, points, schedule),
        )
        reports: list[BlockReport] = []

        def progress(done: int, _: int) -> None:
            ctx.progress(len(reports) + done, len(blocks))

        for stage, (chosen, on, how) in enumerate(stages):
            if chosen:
                reports += reconstruct(
                    model,
                    chosen,
                    on,
                    how,
                    acts=False,
                    seed=ctx.seed + stage,
                    progress=progress,
                    held_out=ctx.held_out(on),
                )
        return reports


def spread(points: CalibrationSet, most: int) -> CalibrationSet:
    """Equally many points of every sampler call, ``most`` in all, but one of each at least.

    Neighbouring calls have other rows, so that together they see many conditions.
    """
    calls = torch.unique(points.step).tolist()
    each = max(1, most // len(calls))
    rows: list[int] = []
    for place, call in enumerate(calls):
        here = (points.step == call).nonzero().flatten().tolist()
        count = min(each, len(here))
        rows += [here[(place * count + k) % len(here)] for k in range(count)]
    return points.rows(torch.tensor(rows))
