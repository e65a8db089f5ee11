"""DGQ: distribution-aware group quantization of activations and attention (Ryu et al., ICLR 2025).

Order as in the released code: (1) weights by AdaRound, block by block, activations in floating
point; (2) for every layer the axis, positions or channels, whose slices' bounds differ more;
k-means on (min, max) gives G groups of slices, each with a min-max range at every call; (3)
scores after softmax in logarithmic codes under the sample's largest value, without the start
token's column, which stays in floating point with its key row. Nothing is learned after (2).

Variant ``release`` differs in the weights: ranges by 80 shrinkings, the plain AdaRound schedule.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from quantarena.methods import hyper_parameters, published
from quantarena.methods.api import (
    FP_WIDTH,
    AtLeast,
    CalibrationSet,
    Capabilities,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    PerCall,
    QuantizedModel,
    QuantLayer,
    RangeSearch,
    Schedule,
    minmax_range,
    mse_range,
    points_per_call,
    reconstruct,
    register,
    shrink_range,
)
from quantarena.methods.core.model.options.input_offset import InputOffset
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.trace.network import AttentionKind
from quantarena.methods.techniques.calibrate.attention import calibrate_attention
from quantarena.methods.techniques.calibrate.axis_bounds import (
    Axes,
    axes_of_inputs,
    axes_of_products,
)
from quantarena.methods.techniques.calibrate.axis_groups import (
    groups_by_call,
    groups_of_all,
    set_group_table,
    spreads,
)
from quantarena.methods.techniques.calibrate.bounds import Bounds
from quantarena.methods.techniques.calibrate.plan import CalibrationPlan, calls_beside

_ONE_GROUP = torch.zeros(1, dtype=torch.long)
NARROW = 4
"""Widths up to which a group's range has no margin: there steps cost more than clipped values."""


def release_schedule(iterations: int) -> Schedule:
    """The released code's schedule: plain AdaRound."""
    return replace(Schedule.adaround(iterations), batch=hyper_parameters.DGQ.batch)


def paper_schedule(iterations: int) -> Schedule:
    """The published schedule at its length, a faster one below it."""
    published = iterations >= hyper_parameters.DGQ.updates
    return hyper_parameters.DGQ.schedule() if published else Schedule.fast(iterations)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a variant of DGQ rounds weights.

    Attributes:
        search: range search of the weights.
        schedule: schedule for a number of iterations a block.
    """

    search: RangeSearch
    schedule: Callable[[int], Schedule]


RECIPES = {
    "paper": Recipe(mse_range, paper_schedule),
    "release": Recipe(shrink_range, release_schedule),
}


@register("dgq")
class Dgq(Method):
    """Groups of similar slices along the axis that needs them, logarithmic attention."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of DGQ.

        Attributes:
            groups: number of groups G; 1 is one range for the whole tensor.
            per_call: ranges, and memberships of positions, for each sampler call.
            adaround: reconstruct weights; if false, round to nearest.
            patches: give a convolution whose pixels differ more than its channels groups of output
                pixels, over patches; if false, groups of channels.
            least: minimum number of calibration points that the bounds of a sampler call come from;
                if fewer were drawn, points of neighbouring calls are pooled.
            margin: share of its width by which the range of a group is widened at more than 4 bits.
            frozen: channels keep their group at all sampler calls, as packed weights need; if
                false, a model runs in fake quantization only, which shows what freezing costs.
            log2: logarithmic codes for the scores after softmax; if false, a uniform range by call.
            start_token: keep the first key of cross-attention out of the quantizers.
            softmax16: leave scores after softmax in floating point, whatever the policy asks.
        """

        groups: Annotated[int, AtLeast(1)] = 8
        per_call: bool = True
        adaround: bool = True
        patches: bool = True
        least: Annotated[int, AtLeast(1)] = 256
        margin: Annotated[float, AtLeast(0)] = 0.1
        frozen: bool = True
        log2: bool = True
        start_token: bool = True
        softmax16: bool = False

    info = MethodInfo(
        title="DGQ",
        venue="ICLR 2025",
        paper="arXiv:2501.04304",
        summary="activation groups by (min, max) along the axis that differs more, log2 attention",
        version=3,
        bibtex=(
            "@inproceedings{ryu2025dgq, title={DGQ: Distribution-Aware Group Quantization for "
            "Text-to-Image Diffusion Models}, author={Ryu, Hyogon and Park, NaHyeon and Shim, "
            "Hyunjung}, booktitle={ICLR}, year={2025}}"
        ),
        deviations=(
            "one axis a layer, and one membership of channels, for all sampler calls: packed "
            "weights are sorted once (paper: both anew at each step); positions change groups",
            "channel groups of a convolution hold whole channels (release: kernel taps apart)",
            "ranges of groups of channels in layers that pad, and of attention operands, contain "
            "zero (release: with G > 1 not), whose code pads; others need not: groups of channels "
            "are moved to zero by an offset, those of tokens and patches have zero points that are "
            "no codes, at most 16,384 away",
            "at more than 4 bits the ranges of groups are a tenth wider than what calibration saw "
            "(paper and release: not)",
            "the attention scale is the largest value of a sample (release: of the whole batch, so "
            "that results depend on batch mates)",
            "tables are read by sampler call (release: by timestep, one call late under PLMS)",
            "ranges of inputs with one row a sample cover all points (release: first mini-batch)",
            "short runs have a larger rate, in variant paper under a stronger regulariser (paper, "
            "and preset paper: 20,000 at 1e-3 with 0.01)",
            "attention products stay in floating point under the uniform policy",
        ),
    )
    supports = Capabilities(variants=tuple(RECIPES), board_bits=("w4a8", "w4a4"))
    published = published.DGQ
    switches: ClassVar[Mapping[str, Any]] = {
        "groups": 1,
        "per_call": False,
        "adaround": False,
        "patches": False,
    }
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Reconstruct weights, then group activations."""
        policy = None
        if self.options.softmax16:
            rule = replace(ctx.policy.attention, softmax=FP_WIDTH)
            policy = replace(ctx.policy, attention=rule)
        model = ctx.wrap(policy=policy)
        points = ctx.draw(PerCall(points_per_call(ctx.trajectory, ctx.effort.samples)))
        self.round_weights(model, ctx, points)
        self.prepare_attention(model)
        points = ctx.range_points()
        if self.options.per_call:
            model.use_schedule(points)
        reach = self.reach(len(points) // ctx.trajectory.calls) if self.options.per_call else 0
        notes: dict[str, Any] = {}
        for name, axes in axes_of_inputs(model, points, per_call=self.options.per_call).items():
            layer = model.layers[name]
            quantizer = layer.only_part.static
            if quantizer is not None:
                notes[name] = self.group_layer(layer, quantizer, axes.pooled(reach), ctx.seed)
        if not self.options.log2:
            calibrate_attention(
                model, points, minmax_range, CalibrationPlan(per_call=self.options.per_call)
            )
        products = axes_of_products(model, points, per_call=self.options.per_call)
        for (name, operand), axes in products.items():
            quantizer = model.attention[name].static(operand)
            assert quantizer is not None
            kept = self.group_product(quantizer, axes.pooled(reach), ctx.seed)
            notes[f"{name}:{operand}"] = kept
        model.notes["groups"] = notes
        return model

    def reach(self, points: int) -> int:
        """How many calls on either side make up ``least`` points with ``points`` at each call."""
        return calls_beside(points, self.options.least)

    def round_weights(
        self, model: QuantizedModel, ctx: MethodContext, points: CalibrationSet
    ) -> None:
        """Find weight ranges, then learn roundings."""
        recipe = RECIPES[ctx.variant]
        model.set_weight_ranges(recipe.search)
        if not (self.options.adaround and ctx.effort.iterations):
            return
        reports = reconstruct(
            model,
            ctx.blocks(model, points),
            points,
            recipe.schedule(ctx.effort.iterations),
            acts=False,
            seed=ctx.seed,
            progress=ctx.progress,
            held_out=ctx.held_out(points),
        )
        model.notes["reconstruction"] = [report.note() for report in reports]

    def prepare_attention(self, model: QuantizedModel) -> None:
        """Give scores logarithmic codes and keep the start token out of the quantizers."""
        for name, quant in model.attention.items():
            if self.options.log2 and quant.bits.softmax != FP_WIDTH:
                quant.use_log()
            if self.options.start_token and model.graph.attention[name].kind is AttentionKind.CROSS:
                quant.exclude_keys(1)

    def group_layer(
        self, layer: QuantLayer, quantizer: ActQuantizer, axes: Axes, seed: int
    ) -> dict[str, Any]:
        """Give a layer's input its groups; return what was decided, for the notes."""
        if (
            self.options.groups == 1
            or layer.groups != 1
            or (axes.positions is None and not layer.is_conv)
        ):
            set_group_table(quantizer, None, axes.whole, _ONE_GROUP)
            return {"axis": "tensor"}
        # of equal spreads the last axis but one: channels of patches, tokens of a linear layer
        wanted, agree = by_positions(axes, ties=not layer.is_conv)
        chosen = wanted and (self.options.patches or not layer.is_conv)
        if chosen and axes.positions is not None:
            if layer.is_conv:
                layer.use_patches()
            ids = self.members(axes.positions, seed)
            bounds = self.wider(axes.positions, quantizer.bits)
            set_group_table(quantizer, -2, bounds, ids, with_zero=False)
        else:
            ids = self.members(axes.channels, seed, frozen=self.options.frozen)
            bounds = self.wider(axes.channels, quantizer.bits)
            if ids.dim() == 1 and not any(layer.geometry.padding):
                bounds = move_to_zero(layer, bounds, ids)
            set_group_table(quantizer, 1 if layer.is_conv else -1, bounds, ids)
        return {"axis": "positions" if chosen else "channels", "wanted": wanted, "agree": agree}

    def group_product(self, quantizer: ActQuantizer, axes: Axes, seed: int) -> dict[str, Any]:
        """Give queries, keys or values their groups; tokens or channels, as they ask."""
        if self.options.groups == 1 or axes.positions is None:
            set_group_table(quantizer, None, axes.whole, _ONE_GROUP)
            return {"axis": "tensor"}
        chosen, agree = by_positions(axes, ties=True)
        bounds = axes.positions if chosen else axes.channels
        ids, axis = self.members(bounds, seed), -2 if chosen else -1
        set_group_table(quantizer, axis, self.wider(bounds, quantizer.bits), ids)
        return {"axis": "positions" if chosen else "channels", "wanted": chosen, "agree": agree}

    def wider(self, bounds: Bounds, bits: int) -> Bounds:
        """Bounds of slices with the margin on either side, where there are codes to spare."""
        if bits <= NARROW:
            return bounds
        margin = (bounds.high - bounds.low) * (self.options.margin / 2)
        return Bounds(bounds.low - margin, bounds.high + margin)

    def members(self, bounds: Bounds, seed: int, *, frozen: bool = False) -> Tensor:
        """The group of each slice, (slices,), or of each slice at each call, (S, slices)."""
        found = groups_of_all if frozen else groups_by_call
        return found(bounds, self.options.groups, seed)


def move_to_zero(layer: QuantLayer, bounds: Bounds, ids: Tensor) -> Bounds:
    """Give groups of channels that lie beyond zero an offset; returns the bounds without it.

    Args:
        layer: a layer that pads nothing.
        bounds: bounds of its input channels, (S, K).
        ids: group of each channel, (K,).
    """
    low, high = bounds.low.amin(0), bounds.high.amax(0)
    offset = torch.zeros_like(low)
    for group in torch.unique(ids):
        members = ids == group
        least, most = low[members].min(), high[members].max()
        if least > 0 or most < 0:
            offset[members] = (least + most) / 2
    if not bool(offset.any()):
        return bounds
    layer.put(InputOffset.of(offset, layer))
    return Bounds(bounds.low - offset, bounds.high - offset)


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
