"""EfficientDM: LoRA merged before quantization, taught without data, scales by step (He, 2024).

Order as in the paper: (1) ranges of weights by output channel, of activations by sampler call
(TALSQ); (2) quantization-aware LoRA: ``Q(W + BA)`` with W frozen, so that what learns is merged and
costs nothing afterwards; (3) the full-precision network walks from new noise and teaches the
quantized one at every sample that it meets; (4) LoRA's rate in each layer is in proportion to that
layer's weight scale, for a change below a scale rounds away.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from quantarena.methods import hyper_parameters, published
from quantarena.methods.api import (
    AtLeast,
    Capabilities,
    Decay,
    Distillation,
    Group,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    RangeSearch,
    Unsupported,
    distill,
    minmax_range,
    mse_act_range,
    mse_range,
    register,
    teacher_walk,
)
from quantarena.methods.info import Effort
from quantarena.methods.techniques.distill.fresh_walk import fresh_walk
from quantarena.methods.techniques.distill.starting_ranges import calibrate_calls
from quantarena.methods.techniques.distill.teacher_walk import whole_walks
from quantarena.methods.techniques.distill.walk import Walk
from quantarena.methods.techniques.learn.schedule import (
    ACT_SCALE_LENGTH,
    paced_groups,
    scaled,
)

RANK = 32
LORA_LENGTH, WEIGHT_SCALE_LENGTH = 32, 200
"""Updates up to which each rate holds; longer runs have less, see ``schedule.paced``."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a variant of EfficientDM starts, and what learns.

    Attributes:
        weight_search: range search of the weights.
        copied: find one activation range on few samples and copy it to all sampler calls.
        zero_points: whether the activations' zero points learn too.
    """

    weight_search: RangeSearch
    copied: bool
    zero_points: bool


RECIPES = {
    "paper": Recipe(mse_range, copied=False, zero_points=False),
    "release": Recipe(minmax_range, copied=True, zero_points=True),
}


@register("efficient_dm")
class EfficientDM(Method):
    """QALoRA, data-free distillation along the full-precision trajectory, TALSQ."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of EfficientDM.

        Attributes:
            lora: learn a low-rank change of the weights, merged before quantization (QALoRA); if
                false, scales alone learn.
            scale_aware: LoRA's rate in each layer follows the layer's weight scale; if false, all
                layers have the mean of these rates.
            per_call: an activation range for each sampler call (TALSQ).
            finetune: learn at all.
            data_free: walk from new noise; if false, or where the sampler's step cannot be told
                from the recording, the recorded walks of full precision are walked again.
            batch: rows of each walk; the paper's 4 at the published length.
            lora_lr: learning rate of LoRA in a run of up to 32 updates, relative to the mean weight
                scale of the layer; longer runs have less, and the published length has the paper's.
            weight_scale_lr: same of weight scales up to 200 updates, relative to each parameter's
                mean.
            act_scale_lr: same of activation scales up to 160 updates, relative to each parameter's
                mean.
        """

        lora: bool = True
        scale_aware: bool = True
        per_call: bool = True
        finetune: bool = True
        data_free: bool = True
        batch: Annotated[int, AtLeast(1)] = 20
        lora_lr: Annotated[float, AtLeast(0)] = 0.05
        weight_scale_lr: Annotated[float, AtLeast(0)] = 2e-3
        act_scale_lr: Annotated[float, AtLeast(0)] = 5e-3

    info = MethodInfo(
        title="EfficientDM",
        venue="ICLR 2024",
        paper="arXiv:2310.03270",
        summary="LoRA merged before quantization, taught without data, activation scales by step",
        version=2,
        bibtex=(
            "@inproceedings{he2024efficientdm, title={EfficientDM: Efficient Quantization-Aware "
            "Fine-Tuning of Low-Bit Diffusion Models}, author={He, Yefei and Liu, Jing and Wu, "
            "Weijia and Zhou, Hong and Zhuang, Bohan}, booktitle={ICLR}, year={2024}}"
        ),
        deviations=(
            "ranges start by MSE search on recorded points, activations at each step (variant "
            "release: min-max weights, one activation range on 32 samples copied to all steps)",
            "new walks follow the sampler's step as fitted to recorded walks and take conditions "
            "from them; where it cannot be fitted, recorded walks are walked again",
            "updates follow the preset, in whole walks, of 20 rows (paper: 4), at rates that fit "
            "the length; preset paper has the paper's 16,000 of 4 rows at LoRA 1/2500 and scales "
            "1e-6 and 5e-4; zero points learn in variant release alone",
            "the sampler's own steps are trained (paper: 100 steps, whose scales are then thinned "
            "out to those of sampling)",
            "LoRA starts from the full-precision weight (release: from the weight already packed)",
            "layers that the policy keeps at 8 bits learn as all others (release: without LoRA and "
            "with one activation range)",
        ),
    )
    supports = Capabilities(variants=tuple(RECIPES), whole_network=True)
    published = published.EFFICIENT_DM
    switches: ClassVar[Mapping[str, Any]] = {
        "lora": False,
        "scale_aware": False,
        "per_call": False,
        "finetune": False,
    }
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Calibrate, then fine-tune along full-precision walks."""
        model, recipe, points = ctx.wrap(), RECIPES[ctx.variant], ctx.range_points()
        model.set_weight_ranges(recipe.weight_search)
        calibrate_calls(
            model, points, mse_act_range, per_call=self.options.per_call, copied=recipe.copied
        )
        schedule = self.schedule(model, ctx.effort, ctx.trajectory.calls, recipe)
        if self.options.finetune and schedule.updates:
            walk, source = self.walk(ctx)
            report = distill(
                model,
                ctx.model,
                walk,
                schedule,
                seed=ctx.seed,
                progress=ctx.progress,
                judged=ctx.judged_points(),
            )
            notes = {**report.note(), "walks": source, "zero_point_drift": report.drift}
            model.notes["distillation"] = notes
        return model

    def walk(self, ctx: MethodContext) -> tuple[Walk, str]:
        """The walks to learn on, and which they are."""
        paper = hyper_parameters.EFFICIENT_DM.batch
        batch, source = paper if ctx.effort.as_published else self.options.batch, "recorded"
        if self.options.data_free:
            try:
                return fresh_walk(ctx.model, ctx.trajectory, batch), "new"
            except Unsupported as reason:
                source = f"recorded: {reason}"
        return teacher_walk(ctx.trajectory, batch), source

    def schedule(
        self, model: QuantizedModel, effort: Effort, calls: int, recipe: Recipe
    ) -> Distillation:
        """The paper's updates, scaled by the preset's share of 20,000 iterations, in whole walks.

        At the published length the rates are the paper's own, else those of a run this long.
        """
        paper = hyper_parameters.EFFICIENT_DM
        updates = whole_walks(scaled(effort.iterations, paper.updates, least=0), calls)
        groups, zero = dict(paper.groups), hyper_parameters.EFFICIENT_DM_ZERO
        if not effort.as_published:
            rates = {
                "lora": (self.options.lora_lr, LORA_LENGTH),
                "weight_scale": (self.options.weight_scale_lr, WEIGHT_SCALE_LENGTH),
                "act_scale": (self.options.act_scale_lr, ACT_SCALE_LENGTH),
            }
            groups = paced_groups(rates, updates, Decay.LINEAR)
            zero = groups["act_scale"]
        if recipe.zero_points:
            groups["act_zero"] = zero
        if not self.options.lora:
            del groups["lora"]
        elif not self.options.scale_aware:
            groups["lora"] = same_for_all(model, groups["lora"])
        return Distillation(updates, groups, reduction="sum", rank=RANK)


def same_for_all(model: QuantizedModel, group: Group) -> Group:
    """A rate that is relative to scales as one absolute rate: relative to the mean of all layers.

    Weights at 8 bits, whose scales are far below the others', are left out of the mean.
    """
    parts = [(layer.bits.weight, p) for layer in model.layers.values() for p in layer.parts]
    found = [(b, p.weight_quantizer) for b, p in parts if p.weight_quantizer is not None]
    least = min((bits for bits, _ in found), default=0)
    scales = [float(q.scale.abs().mean()) for bits, q in found if bits == least]
    mean = sum(scales) / max(1, len(scales))
    return replace(group, lr=group.lr * mean, relative=False)
