"""MPQ-DM: outlier-driven mixed widths and time-smoothed relation distillation (Feng et al., 2025).

Order as in the paper: (1) inputs are smoothed into the weights; (2) outlier-driven mixed
quantization (OMQ): of each layer's output channels the m with the heaviest tails, by kurtosis, get
one bit more and the m lightest one bit less, so the mean is exactly what was asked; m is the one
whose output error is smallest; (3) LoRA, merged before quantization, learns along the
full-precision trajectory together with all scales, under the error of the prediction and (4) the
time-smoothed relation distillation (TRD): similarities between the places of a feature map,
averaged over consecutive steps.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from quantarena.methods import hyper_parameters, published
from quantarena.methods.api import (
    AtLeast,
    CalibrationSet,
    Capabilities,
    Decay,
    Distillation,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    RangeSearch,
    distill,
    input_bounds,
    minmax_range,
    mse_act_range,
    mse_range,
    register,
    smooth,
    teacher_walk,
)
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.record.points import evenly
from quantarena.methods.core.record.rows import module_rows
from quantarena.methods.core.trace.network import Role
from quantarena.methods.info import Effort
from quantarena.methods.techniques.calibrate.channel_widths import swap_widths
from quantarena.methods.techniques.distill.starting_ranges import INITIAL, calibrate_calls
from quantarena.methods.techniques.distill.teacher_walk import whole_walks
from quantarena.methods.techniques.distill.window_terms import WindowTerm
from quantarena.methods.techniques.learn.schedule import (
    ACT_SCALE_LENGTH,
    paced_groups,
    scaled,
)

RANK = 32
LORA_LENGTH, WEIGHT_SCALE_LENGTH = 160, 200
"""Updates up to which each rate holds; longer runs have less, see ``schedule.paced``."""
ALPHA = 0.5


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a variant of MPQ-DM calibrates, mixes widths and distils.

    Attributes:
        copied: find one activation range on few samples and copy it to all sampler calls.
        search: range search that widths are compared with.
        quantized_inputs: whether widths are compared with the layer's input quantized too.
        most: largest number of tenths of the channels that may be widened.
        related: whether the relation term acts.
    """

    copied: bool
    search: RangeSearch
    quantized_inputs: bool
    most: int
    related: bool


RECIPES = {
    "paper": Recipe(copied=False, search=mse_range, quantized_inputs=True, most=5, related=True),
    "release": Recipe(
        copied=True, search=minmax_range, quantized_inputs=False, most=1, related=False
    ),
}


@register("mpq_dm")
class MpqDm(Method):
    """Widths by kurtosis, smoothing, LoRA and relation distillation along the trajectory."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of MPQ-DM.

        Attributes:
            mixed: give channels N-1, N and N+1 bits (OMQ); if false, all have N.
            smoothing: level input channels into the weights first.
            per_call: an activation range for each sampler call.
            finetune: learn LoRA and scales.
            relation: weight of TRD; 0 leaves it out, as variant release does.
            window: consecutive sampler calls whose features TRD averages.
            batch: rows of each walk; the paper's 4 at the published length.
            lora_lr: learning rate of LoRA in a run of up to 160 updates, relative to the mean
                weight scale of the layer; longer runs have less, and the published length has the
                paper's.
            weight_scale_lr: same of weight scales up to 200 updates, relative to each parameter's
                mean.
            act_scale_lr: same of activation scales up to 160 updates, relative to each parameter's
                mean.
        """

        mixed: bool = True
        smoothing: bool = True
        per_call: bool = True
        finetune: bool = True
        relation: Annotated[float, AtLeast(0)] = 100.0
        window: Annotated[int, AtLeast(1)] = 2
        batch: Annotated[int, AtLeast(1)] = 20
        lora_lr: Annotated[float, AtLeast(0)] = 0.01
        weight_scale_lr: Annotated[float, AtLeast(0)] = 2e-3
        act_scale_lr: Annotated[float, AtLeast(0)] = 5e-3

    info = MethodInfo(
        title="MPQ-DM",
        venue="AAAI 2025",
        paper="arXiv:2412.11549",
        summary="channel widths N-1, N, N+1 by kurtosis; LoRA with relation distillation",
        version=4,
        bibtex=(
            "@inproceedings{feng2025mpqdm, title={MPQ-DM: Mixed Precision Quantization for "
            "Extremely Low Bit Diffusion Models}, author={Feng, Weilun and Qin, Haotong and Yang, "
            "Chuanguang and An, Zhulin and Huang, Libo and Diao, Boyu and Wang, Fei and Tao, "
            "Renshuai and Xu, Yongjun and Magno, Michele}, booktitle={AAAI}, year={2025}}"
        ),
        deviations=(
            "walks are the recorded trajectories that all methods share (paper: new noise and "
            "labels for each)",
            "updates follow the preset, in whole walks, of 20 rows (paper: 4), at rates that fit "
            "the length; preset paper has the paper's 16,000 of 4 rows at LoRA 1/2500 and scales "
            "1e-6 and 5e-4; zero points do not learn",
            "LoRA changes the smoothed weight (paper: the weight, smoothed afterwards)",
            "the layer that reads the noisy sample is not smoothed (paper: all are), which raised "
            "the error of one call at w8a8 by 0.7 times on emoji-t2i",
            "at 8 bits all channels have 8: codes of 9 bits cannot be stored",
            "activation ranges start as found at each step (variant release: one range on 32 "
            "samples, copied to all steps)",
            "variant release computes no relation term, for the released code detaches its "
            "features and so adds no gradient; its slips in LoRA's rate are not repeated",
        ),
    )
    supports = Capabilities(variants=tuple(RECIPES), whole_network=True)
    published = published.MPQ_DM
    switches: ClassVar[Mapping[str, Any]] = {
        "mixed": False,
        "smoothing": False,
        "per_call": False,
        "finetune": False,
        "relation": 0.0,
    }
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Smooth, calibrate, decide widths, fine-tune."""
        model = ctx.wrap()
        points = ctx.range_points()
        if self.options.smoothing:
            first = {n for n, i in ctx.graph.layers.items() if i.role is Role.INPUT}
            smooth_layers(model, points, skip=first)
        recipe = RECIPES[ctx.variant]
        calibrate_calls(
            model, points, mse_act_range, per_call=self.options.per_call, copied=recipe.copied
        )
        if self.options.mixed:
            model.notes["widths"] = mix_widths(model, points, ctx.bits.weight, recipe)
        model.set_weight_ranges(mse_range)
        if self.options.finetune:
            self.tune(model, ctx, points, self.options.relation if recipe.related else 0.0)
        return model

    def tune(
        self, model: QuantizedModel, ctx: MethodContext, points: CalibrationSet, relation: float
    ) -> None:
        """Distil along the recorded walks; the notes say what happened."""
        module = last_block(ctx, model, points) if relation else ""
        terms = (
            (WindowTerm(module, relation_loss, self.options.window, relation),) if relation else ()
        )
        schedule = self.schedule(ctx.effort, ctx.trajectory.calls, terms)
        if not schedule.updates:
            return
        paper = hyper_parameters.MPQ_DM.batch
        batch = paper if ctx.effort.as_published else self.options.batch
        walk = teacher_walk(ctx.trajectory, batch)
        report = distill(
            model,
            ctx.model,
            walk,
            schedule,
            seed=ctx.seed,
            progress=ctx.progress,
            judged=ctx.judged_points(),
        )
        model.notes["distillation"] = {**report.note(), "feature": module}

    def schedule(
        self, effort: Effort, calls: int, terms: tuple[WindowTerm, ...] = ()
    ) -> Distillation:
        """The paper's updates, scaled by the preset's share of 20,000 iterations, in whole walks.

        At the published length the rates are the paper's own, else those of a run this long.
        """
        updates = whole_walks(
            scaled(effort.iterations, hyper_parameters.MPQ_DM.updates, least=0), calls
        )
        groups = hyper_parameters.MPQ_DM.groups
        if not effort.as_published:
            rates = {
                "lora": (self.options.lora_lr, LORA_LENGTH),
                "weight_scale": (self.options.weight_scale_lr, WEIGHT_SCALE_LENGTH),
                "act_scale": (self.options.act_scale_lr, ACT_SCALE_LENGTH),
            }
            groups = paced_groups(rates, updates, Decay.LINEAR)
        return Distillation(updates, groups, reduction="sum", terms=terms, rank=RANK)


def smooth_layers(
    model: QuantizedModel, points: CalibrationSet, *, skip: Collection[str] = ()
) -> None:
    """Level the input channels of every layer but grouped convolutions and ``skip``, in place."""
    for name, bounds in input_bounds(model, points).items():
        layer = model.layers[name]
        if layer.groups == 1 and name not in skip:
            layer.scale_input(smooth(bounds.absmax, layer.weight, alpha=ALPHA).factor)


def kurtosis(weight: Tensor) -> Tensor:
    """``E[(w - mean)^4] / s^4`` of each output channel, s with n - 1; 0 where all are the same.

    Args:
        weight: (O, K, ...).

    Returns:
        (O,).
    """
    rows = weight.flatten(1).double()
    centred = rows - rows.mean(1, keepdim=True)
    spread = centred.square().sum(1) / max(1, rows.shape[1] - 1)
    top = centred.pow(4).mean(1)
    return torch.where(spread > 0, top / spread.clamp(min=1e-300).square(), 0.0).float()


def candidates(channels: int, most: int) -> list[int]:
    """0, C // 10, 2 (C // 10) ... up to ``most`` steps and C // 2; fewer than ten are not mixed."""
    step = channels // 10
    return [count * step for count in range(most + 1 if step else 1)]


def spread(points: CalibrationSet, count: int) -> CalibrationSet:
    """``count`` of the points, evenly spread over the calls; all where there are fewer."""
    return points.rows(evenly(len(points), count))


def mix_widths(
    model: QuantizedModel, points: CalibrationSet, bits: int, recipe: Recipe
) -> dict[str, dict[str, float]]:
    """Give channels of every layer at the requested width their own; ranges are to be found.

    Returns:
        By layer, how many channels were widened, and its output error over that of equal widths.
    """
    swaps = swap_widths(
        model,
        spread(points, INITIAL),
        bits,
        recipe.search,
        lambda layer, errors: kurtosis(layer.weight),
        lambda channels: candidates(channels, recipe.most),
        quantized_inputs=recipe.quantized_inputs,
    )
    return {swap.name: swap.note() for swap in swaps}


def relation_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Kullback-Leibler divergence between the similarities of places, (Feng et al., section 3.3).

    Features of consecutive calls are averaged, normalized over channels, and multiplied place by
    place; each row of that (places, places) matrix goes through a softmax.

    Args:
        ours: the quantized network's features, (B, C, H, W) or tokens (B, N, C), one each call.
        theirs: full precision's.

    Returns:
        The sum over rows and images; no branch is detached.
    """

    def rows(features: Sequence[Tensor]) -> Tensor:
        mean = torch.stack(list(features)).mean(0)
        if mean.dim() not in (3, 4):
            raise Unsupported(
                f"the relation loss compares places of images, features {tuple(mean.shape)} have "
                "none"
            )
        places = mean.flatten(2) if mean.dim() == 4 else mean.transpose(1, 2)
        unit = F.normalize(places, dim=1)
        return (unit.transpose(1, 2) @ unit).log_softmax(-1)

    return F.kl_div(rows(ours), rows(theirs), log_target=True, reduction="sum")


def last_block(ctx: MethodContext, model: QuantizedModel, points: CalibrationSet) -> str:
    """The path of the last block of several layers; in a U-Net, the last of its decoder.

    Blocks that return no places, such as those of vectors or of a learned table, do not count.

    Raises:
        Unsupported: there is no other block.
    """
    blocks = ctx.blocks(model, points)
    with model.using(weights=False, acts=False):
        rows = module_rows(model.module, points, [block.name for block in blocks], model.run)
    blocks = tuple(b for b in blocks if rows[b.name].returned == 1 and rows[b.name].dims in (3, 4))
    if not blocks:
        raise Unsupported(
            "the relation loss compares places of images, and no block returns images or tokens "
            "with one row for each point: set relation=0"
        )
    several = [block.name for block in blocks if len(block.layers) > 1]
    return several[-1] if several else blocks[max(0, len(blocks) - 2)].name
