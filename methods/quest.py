"""QuEST: selective fine-tuning of what makes activations hard to quantize (Wang et al., ICCV 2025).

Order as in the paper: (1) weights by Q-Diffusion's AdaRound, activation ranges by groups of sampler
calls; (2) the layers through which the timestep enters are tuned with their activation scales, on
their own outputs and on the network's (TLA); (3) so are the layers around attention, with all other
activation scales (CMA). Each tuned weight moves while the way that it rounds stays, so values that
were hard to quantize can be made easier by the layer that produces them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from quantarena.methods import hyper_parameters, published
from quantarena.methods.api import (
    AtLeast,
    Capabilities,
    Decay,
    Distillation,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    Schedule,
    UniformStride,
    calibrate_activations,
    distill,
    mse_act_range,
    mse_range,
    reconstruct,
    register,
    teacher_walk,
)
from quantarena.methods.core.trace.network import AttentionKind, Graph, Role
from quantarena.methods.hyper_parameters import Training
from quantarena.methods.info import Effort
from quantarena.methods.techniques.distill.starting_ranges import calibrate_by_group
from quantarena.methods.techniques.distill.teacher_walk import whole_walks
from quantarena.methods.techniques.distill.window_terms import WindowTerm
from quantarena.methods.techniques.learn.schedule import (
    ACT_SCALE_LENGTH,
    paced_groups,
    scaled,
)

TIME_ROLES = (Role.EMB_PROJ, Role.ADALN)
"""What the release finds under the name ``emb_layer``; the embedding itself is not tuned."""
GROUPS = 20
WEIGHT_LENGTH = 320
"""Updates up to which the rate of weights holds; longer runs have less, see ``paced``."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a variant of QuEST compares in each stage, beside the network's output.

    Attributes:
        time: weight of each time layer's own error.
        attention: weight of each attention layer's own error.
        repeated: add the output's error once for each layer, as the released loop does.
    """

    time: float
    attention: float
    repeated: bool


RECIPES = {
    "paper": Recipe(time=1.0, attention=1.0, repeated=False),
    "release": Recipe(time=1.0, attention=0.0, repeated=True),
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the fine-tuning.

    Attributes:
        name: for the notes.
        weights: paths of the layers whose weights learn.
        scales: paths of the layers whose activation scales learn.
        paper: its length and rates.
        local: weight of the own error of each layer that learns.
        products: whether the activation scales of attention products learn too.
    """

    name: str
    weights: frozenset[str]
    scales: frozenset[str]
    paper: Training
    local: float
    products: bool = False


@register("quest")
class QuEST(Method):
    """AdaRound, then time layers, then attention layers, with activation scales."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of QuEST.

        Attributes:
            time_layers: tune the layers that bring the timestep in (TLA).
            attention_layers: tune the layers around attention (CMA).
            weights: tune weights; if false, activation scales alone.
            local: compare the tuned layers' own outputs too.
            step_groups: groups of sampler calls that start with one activation range; 1 is one
                range for all calls.
            batch: rows of each walk; the paper's 2 and 4 at the published length.
            weight_lr: learning rate of weights in a stage of up to 320 updates, relative to the
                mean weight scale of the layer; longer stages have less, and the published length
                has the paper's.
            act_scale_lr: same of activation scales up to 160 updates, relative to each parameter's
                mean.
        """

        time_layers: bool = True
        attention_layers: bool = True
        weights: bool = True
        local: bool = True
        step_groups: Annotated[int, AtLeast(1)] = GROUPS
        batch: Annotated[int, AtLeast(1)] = 16
        weight_lr: Annotated[float, AtLeast(0)] = 0.005
        act_scale_lr: Annotated[float, AtLeast(0)] = 5e-3

    info = MethodInfo(
        title="QuEST",
        venue="ICCV 2025",
        paper="arXiv:2402.03666",
        summary="AdaRound, then time and attention layers tuned with activation scales",
        bibtex=(
            "@inproceedings{wang2025quest, title={QuEST: Low-bit Diffusion Model Quantization via "
            "Efficient Selective Finetuning}, author={Wang, Haoxuan and Shang, Yuzhang and Yuan, "
            "Zhihang and Wu, Junyi and Yan, Junchi and Yan, Yan}, booktitle={ICCV}, year={2025}}"
        ),
        deviations=(
            "both stages learn along recorded walks, call after call (paper: all updates of one "
            "step before those of the next)",
            "as many rows as the paper has, scaled to the preset, in whole walks of 16 rows, at "
            "rates that fit the length and fall to zero; preset paper has the release's updates, "
            "of 2 and of 4 rows, at its constant rates, 1e-5 and for scales of the second stage "
            "1e-4",
            "activations have one range for a tensor at 4 bits too (release: one for each input "
            "channel, which no integer product has)",
            "activation ranges by MSE search (release: min-max, smoothed over batches, by model)",
            "calls of a group start with one range and learn apart (paper: they share it)",
            "biases of time layers do not learn",
            "variant release: the output counts once for each compared layer, and attention layers "
            "are not compared",
        ),
    )
    supports = Capabilities(variants=tuple(RECIPES), whole_network=True)
    published = published.QUEST
    switches: ClassVar[Mapping[str, Any]] = {
        "time_layers": False,
        "attention_layers": False,
        "weights": False,
        "local": False,
        "step_groups": 1,
    }
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Reconstruct weights, find ranges, tune time layers, then attention layers."""
        model = ctx.wrap(splits=True)
        learned = ctx.draw(UniformStride(ctx.effort.samples))
        blocks = ctx.blocks(model, learned)
        model.set_weight_ranges(mse_range)
        published_length = hyper_parameters.Q_DIFFUSION.schedule()
        reports = reconstruct(
            model,
            blocks,
            learned,
            published_length if ctx.effort.as_published else Schedule.fast(ctx.effort.iterations),
            acts=False,
            seed=ctx.seed,
            progress=lambda done, _: ctx.progress(done, len(blocks)),
            held_out=ctx.held_out(learned),
        )
        model.notes["reconstruction"] = [report.note() for report in reports]
        points = ctx.range_points()
        if self.options.step_groups > 1:
            calibrate_by_group(model, points, mse_act_range, self.options.step_groups)
        else:
            calibrate_activations(model, points, mse_act_range)
        model.notes["tuning"] = {}
        time, recipe = chosen(model, time_layers(ctx.graph)), RECIPES[ctx.variant]
        if self.options.time_layers:
            paper = hyper_parameters.QUEST_TIME
            self.tune(model, ctx, Stage("time", time, time, paper, recipe.time), recipe)
        if self.options.attention_layers:
            paper = hyper_parameters.QUEST_ATTENTION
            attention = chosen(model, attention_layers(ctx.graph))
            others = frozenset(model.layers) - time
            stage = Stage("attention", attention, others, paper, recipe.attention, products=True)
            self.tune(model, ctx, stage, recipe)
        return model

    def tune(self, model: QuantizedModel, ctx: MethodContext, stage: Stage, recipe: Recipe) -> None:
        """Run one stage; the notes say what happened."""
        weights = stage.weights if self.options.weights else frozenset()
        local = stage.local if self.options.local and weights else 0.0
        if recipe.repeated:
            local /= max(1, len(weights))
        batch = stage.paper.batch if ctx.effort.as_published else self.options.batch
        schedule = self.schedule(stage, ctx.effort, ctx.trajectory.calls, weights, local)
        if not schedule.updates or not (weights or stage.scales):
            return
        for path in weights:
            thaw(model, path)
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
        model.notes["tuning"][stage.name] = {**report.note(), "layers": len(weights)}

    def schedule(
        self, stage: Stage, effort: Effort, calls: int, weights: frozenset[str], local: float
    ) -> Distillation:
        """As many rows as the paper's stage, scaled by the preset's share of 20,000 iterations.

        At the published length updates, rows and rates are the paper's own.
        """
        paper, groups = stage.paper, stage.paper.groups
        updates = whole_walks(paper.updates, calls)
        if not effort.as_published:
            rows = scaled(effort.iterations, paper.updates * paper.batch, least=0)
            updates = whole_walks(-(-rows // self.options.batch), calls)
            rates = {
                "weight": (self.options.weight_lr, WEIGHT_LENGTH),
                "act_scale": (self.options.act_scale_lr, ACT_SCALE_LENGTH),
            }
            groups = paced_groups(rates, updates, Decay.LINEAR)
        where = {
            "weight": replace(groups["weight"], layers=weights, products=False),
            "act_scale": replace(groups["act_scale"], layers=stage.scales, products=stage.products),
        }
        terms = [WindowTerm(path, own_error, 1, local) for path in sorted(weights) if local]
        return Distillation(updates, where, terms=tuple(terms))


def time_layers(graph: Graph) -> list[str]:
    """The layers that bring the embedded timestep into the blocks."""
    return [name for name, info in graph.layers.items() if info.role in TIME_ROLES]


def attention_layers(graph: Graph) -> list[str]:
    """Feed-forward layers, queries, and keys and values of self-attention."""
    cross = [info for info in graph.attention.values() if info.kind is AttentionKind.CROSS]
    outside = {path for info in cross for path in (*info.key, *info.value)}
    return [
        name
        for name, info in graph.layers.items()
        if info.role is Role.FF or (info.role is Role.QKV and name not in outside)
    ]


def chosen(model: QuantizedModel, names: Collection[str]) -> frozenset[str]:
    """Those of the named layers that are quantized."""
    return frozenset(name for name in names if name in model.layers)


def thaw(model: QuantizedModel, path: str) -> None:
    """Let the codes of one layer follow its weight again."""
    layer = model.layers[path]
    for part in layer.parts:
        if part.weight_quantizer is not None:
            part.weight_quantizer.thaw(layer.part_weight(part))


def own_error(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Mean squared error of a layer's output at the present call."""
    return F.mse_loss(ours[-1], theirs[-1])
