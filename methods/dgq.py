"""DGQ: distribution-aware group quantization of activations and attention (Ryu et al., ICLR 2025).

Order as in the released code: (1) weights by AdaRound, block by block, activations in floating
point; (2) for every layer the axis, positions or channels, whose slices' bounds differ more;
k-means on (min, max) gives G groups of slices, each with a min-max range at every call; (3)
scores after softmax in logarithmic codes under the sample's largest value, without the start
token's column, which stays in floating point with its key row. Nothing is learned after (2).

Variant ``release`` differs in the weights: ranges by 80 shrinkings, the plain AdaRound schedule.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from quantarena.methods import published
from quantarena.methods.api import Capabilities, Method, MethodContext, MethodInfo
from quantarena.methods.core.bits import FP_WIDTH
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.steps import PerCall, points_per_call
from quantarena.methods.core.trace.network import AttentionKind
from quantarena.methods.registry import register
from quantarena.methods.techniques.calibrate.attention import calibrate_attention
from quantarena.methods.techniques.calibrate.axis_bounds import (
    Axes,
    axes_of_inputs,
    axes_of_products,
)
from quantarena.methods.techniques.calibrate.axis_groups import (
    group_params,
    groups_by_call,
    groups_of_all,
    spreads,
)
from quantarena.methods.techniques.calibrate.bounds import Bounds
from quantarena.methods.techniques.calibrate.by_call import bank_schedule
from quantarena.methods.techniques.calibrate.plan import CalibrationPlan
from quantarena.methods.techniques.learn.reconstruct import reconstruct
from quantarena.methods.techniques.learn.schedule import Schedule
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range, shrink_range

PAPER_SAMPLES = 128
"""At each call: 64 captions and both guidance halves."""
RELEASE_BATCH = 8


@register("dgq")
class Dgq(Method):
    """Groups of similar slices along the axis that needs them, logarithmic attention.

    Attributes:
        groups: G; 1 is one range for a tensor.
        per_step: ranges, and memberships of positions, for each sampler call.
        adaround: reconstruct weights; else round to nearest.
        patches: a convolution whose pixels differ more than its channels has groups of output
            pixels, over patches; else its channels have groups all the same.
        least: points that the bounds of a call are taken from, at least; where the preset draws
            fewer at each, those of neighbouring calls count too.
        frozen: channels keep their group at all calls, as packed weights need; else a model runs
            in fake quantization only, to see what freezing costs.
        log2: logarithmic codes of the scores after softmax; else a uniform range by call.
        start_token: keep the first key of cross-attention out of the quantizers.
        softmax16: leave scores after softmax in floating point, whatever the policy asks.
    """

    info = MethodInfo(
        title="DGQ",
        venue="ICLR 2025",
        paper="arXiv:2501.04304",
        summary="activation groups by (min, max) along the axis that differs more, log2 attention",
        bibtex=(
            "@inproceedings{ryu2025dgq, title={DGQ: Distribution-Aware Group Quantization for "
            "Text-to-Image Diffusion Models}, author={Ryu, Hyogon and Park, NaHyeon and Shim, "
            "Hyunjung}, booktitle={ICLR}, year={2025}}"
        ),
        deviations=(
            "one axis a layer, and one membership of channels, for all sampler calls: packed "
            "weights are sorted once (paper: both anew at each step); positions change groups",
            "channel groups of a convolution hold whole channels (release: kernel taps apart)",
            "every range contains zero, whose code pads convolutions (release: with G > 1 not)",
            "the attention scale is the largest value of a sample (release: of the whole batch, so "
            "that results depend on batch mates)",
            "tables are read by sampler call (release: by timestep, one call late under PLMS)",
            "ranges of inputs with one row a sample cover all points (release: first mini-batch)",
            "iterations follow the preset, at a larger rate under a stronger regulariser in "
            "variant paper (20,000 at 1e-3 with 0.01)",
            "attention products stay in floating point under the uniform policy",
        ),
    )
    supports = Capabilities(variants=("paper", "release"))
    published = published.DGQ
    switches: ClassVar[Mapping[str, Any]] = {
        "groups": 1,
        "per_step": False,
        "adaround": False,
        "patches": False,
    }
    groups = 8
    per_step = True
    adaround = True
    patches = True
    least = 32
    frozen = True
    log2 = True
    start_token = True
    softmax16 = False

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Reconstruct weights, then group activations."""
        if self.softmax16:
            rule = replace(ctx.policy.attention, softmax=FP_WIDTH)
            ctx.policy = replace(ctx.policy, attention=rule)
        model = ctx.wrap()
        points = ctx.draw(PerCall(points_per_call(ctx.trajectory, ctx.effort.samples)))
        self.round_weights(model, ctx, points)
        self.prepare_attention(model)
        if self.per_step:
            model.clock.schedule = bank_schedule(points)
        reach = self.reach(len(points) // ctx.trajectory.calls) if self.per_step else 0
        notes: dict[str, Any] = {}
        for name, axes in axes_of_inputs(model, points, per_call=self.per_step).items():
            layer = model.layers[name]
            quantizer = layer.part_list()[0].static
            if quantizer is not None:
                notes[name] = self.group_layer(layer, quantizer, axes.pooled(reach), ctx.seed)
        if not self.log2:
            calibrate_attention(
                model, points, minmax_range, CalibrationPlan(per_call=self.per_step)
            )
        products = axes_of_products(model, points, per_call=self.per_step)
        for (name, operand), axes in products.items():
            quantizer = model.attention[name].static(operand)
            assert quantizer is not None
            kept = self.group_product(quantizer, axes.pooled(reach), ctx.seed)
            notes[f"{name}:{operand}"] = kept
        model.notes["groups"] = notes
        return model

    def reach(self, points: int) -> int:
        """Neighbouring calls on either side that make up ``least`` with ``points`` at each."""
        return max(0, math.ceil((self.least / points - 1) / 2))

    def round_weights(
        self, model: QuantizedModel, ctx: MethodContext, points: CalibrationSet
    ) -> None:
        """Weight ranges and roundings."""
        release = ctx.variant == "release"
        model.set_weight_ranges(shrink_range if release else mse_range)
        if not (self.adaround and ctx.effort.iterations):
            return
        schedule = Schedule.fast(ctx.effort.iterations)
        if release:
            schedule = replace(Schedule.adaround(ctx.effort.iterations), batch=RELEASE_BATCH)
        reports = reconstruct(
            model,
            ctx.blocks(model, points),
            points,
            schedule,
            acts=False,
            seed=ctx.seed,
            progress=ctx.progress,
        )
        model.notes["reconstruction"] = [
            {"block": r.name, "before": r.before, "after": r.after, "seconds": round(r.seconds, 3)}
            for r in reports
        ]

    def prepare_attention(self, model: QuantizedModel) -> None:
        """Logarithmic scores, and the start token out of the way."""
        for name, quant in model.attention.items():
            if self.log2 and quant.bits.softmax != FP_WIDTH:
                quant.use_log()
            if self.start_token and model.graph.attention[name].kind is AttentionKind.CROSS:
                quant.excluded = 1

    def group_layer(
        self, layer: QuantLayer, quantizer: ActQuantizer, axes: Axes, seed: int
    ) -> dict[str, Any]:
        """Give a layer's input its groups; what was decided, for the notes."""
        if self.groups == 1 or layer.groups != 1 or (axes.positions is None and not layer.is_conv):
            set_table(quantizer, None, axes.whole, torch.zeros(1, dtype=torch.long))
            return {"axis": "tensor"}
        # of equal spreads the last axis but one: channels of patches, tokens of a linear layer
        wanted, agree = by_positions(axes, ties=not layer.is_conv)
        chosen = wanted and (self.patches or not layer.is_conv)
        if chosen and axes.positions is not None:
            if layer.is_conv:
                layer.use_patches()
            set_table(quantizer, -2, axes.positions, self.members(axes.positions, seed))
        else:
            ids = self.members(axes.channels, seed, frozen=self.frozen)
            set_table(quantizer, 1 if layer.is_conv else -1, axes.channels, ids)
        return {"axis": "positions" if chosen else "channels", "wanted": wanted, "agree": agree}

    def group_product(self, quantizer: ActQuantizer, axes: Axes, seed: int) -> dict[str, Any]:
        """Give queries, keys or values their groups; tokens or channels, as they ask."""
        if self.groups == 1 or axes.positions is None:
            set_table(quantizer, None, axes.whole, torch.zeros(1, dtype=torch.long))
            return {"axis": "tensor"}
        chosen, agree = by_positions(axes, ties=True)
        bounds = axes.positions if chosen else axes.channels
        set_table(quantizer, -2 if chosen else -1, bounds, self.members(bounds, seed))
        return {"axis": "positions" if chosen else "channels", "wanted": chosen, "agree": agree}

    def members(self, bounds: Bounds, seed: int, *, frozen: bool = False) -> Tensor:
        """Group of each slice, (slices,), or by call, (S, slices)."""
        found = groups_of_all if frozen else groups_by_call
        return found(bounds, self.groups, seed)


def by_positions(axes: Axes, *, ties: bool) -> tuple[bool, float]:
    """Whether an operand's positions differ more than its channels, and at which share of calls.

    Over all calls together the spreads count relative to the operand's range at each.
    """
    if axes.positions is None:
        return False, 1.0
    width = (axes.whole.high - axes.whole.low).flatten().clamp(min=1e-30)
    more = (spreads(axes.positions) - spreads(axes.channels)) / width
    total = float(more.sum())
    chosen = total > 0 or (ties and total == 0)
    same = (more > 0) if chosen else (more < 0)
    return chosen, round(float((same | (more == 0)).float().mean()), 4)


def set_table(quantizer: ActQuantizer, axis: int | None, bounds: Bounds, ids: Tensor) -> None:
    """Min-max ranges of groups along ``axis``, or of the whole; one call's table is none."""
    found = group_params(bounds, ids, quantizer.bits)
    single = len(found.scale) == 1
    if axis is None:
        scale, zero = found.scale[:, 0], found.zero_point[:, 0]
        if single:
            quantizer.set_params(replace(found, scale=scale, zero_point=zero))
        else:
            quantizer.set_bank(scale, zero)
    elif single:
        ids = ids if ids.dim() == 1 else ids[0]
        quantizer.set_groups(axis, ids, found.scale[0], found.zero_point[0])
    else:
        quantizer.set_groups(axis, ids, found.scale, found.zero_point)
