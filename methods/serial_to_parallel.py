"""Serial-to-Parallel: learn on the network's own walk, then on all of it (Li et al., 2024).

A reimplementation: no official code was found, and of the paper only what restates it. (1) Under
policy ``budget`` layers whose rounding moves the prediction most have more bits, at the same mean;
(2) activations have a range for each sampler call, all learned together; (3) in the serial stage
the quantized network walks by its own predictions and full precision teaches it on the samples that
it meets, in the parallel stage large batches of mixed calls are drawn from what it met, and both
repeat; (4) layers that see nothing but the timestep become tables by sampler call. The aim is
consistency with full precision: the same image from the same noise and prompt.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from quantarena.methods import published
from quantarena.methods.api import (
    AtLeast,
    Bits,
    CalibrationPlan,
    CalibrationSet,
    Capabilities,
    Decay,
    Group,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    QuantLayer,
    calibrate_activations,
    default_range,
    mse_range,
    register,
)
from quantarena.methods.core.model.call_outputs import call_outputs
from quantarena.methods.core.record.points import calls_of, evenly
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import Role
from quantarena.methods.techniques.calibrate.channel_widths import swap_widths
from quantarena.methods.techniques.distill.held_out import NOTHING_HELD, Judge
from quantarena.methods.techniques.distill.serial_parallel import distill_on_student_walks
from quantarena.methods.techniques.distill.serial_parallel_settings import SerialParallel
from quantarena.methods.techniques.distill.student_walk import RecordedWalks, fit_walks
from quantarena.methods.techniques.distill.time_layers import tabulate_time_layers
from quantarena.methods.techniques.learn.column_rounding import start_from_columns
from quantarena.methods.techniques.learn.oscillation import Freezing
from quantarena.methods.techniques.learn.schedule import paced_groups
from quantarena.methods.techniques.widths.allocate import Allocation, allocate
from quantarena.methods.techniques.widths.layer_losses import candidates, layer_losses

TIME_ROLES = (Role.TIME_EMBED, Role.EMB_PROJ, Role.ADALN)
WEIGHT_LENGTH, SCALE_LENGTH = 400, 3000
"""Updates up to which each rate holds; longer runs have less, see ``schedule.paced``."""
LEAST_FITTED = 8
"""Images that the sampler's step is fitted to, at least; every image that learns is among them."""
QUICK = 100
"""Iterations at which ``rounds`` is as given; it grows in proportion."""
TOLD = 16
"""Rows of each sampler call that tell whether a layer can become a table. Those that do are checked
again when they are made."""
JUDGED = 32
"""Points that channels are ranked on."""


@register("serial_to_parallel")
class SerialToParallel(Method):
    """Ranges by call, tables for time layers, learning on the network's own walks."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of Serial-to-Parallel.

        Attributes:
            serial: learn on the student's own rollout; if false, all is learned on full precision's
                walks ("parallel only").
            serial_first: start each round with the student rollout.
            rounds: serial and parallel stages at 100 iterations; each starts with a new rollout.
            images: images of each round, the next of a shuffled deck; 0 takes all.
            epochs: passes of a parallel stage over the stored pairs; 0 is "serial only".
            batch: rows of a parallel batch.
            window: sampler calls of a rollout to one update.
            guided: match the guided prediction instead of that of each half.
            per_call: a range for each sampler call; if false, one for all.
            column_start: weights start from rounding column by column (GPTQ), each error made good
                by the columns that follow; if false, from rounding to nearest.
            tables: replace layers that depend on the timestep alone by tables of what they give.
            mixed: give sensitive layers more bits and others fewer (v1), under policy budget.
            steps: candidates of mixed precision, as differences to the requested weight bits.
            points: calibration points that the sensitivity of layers is measured on.
            mixed_channels: move bits to sensitive output channels, within each layer.
            weight_lr: learning rate of weights in a run of up to 400 updates, relative to the
                layer's mean weight scale; longer runs have less. 0 learns scales alone.
            weight_scale_lr: same of weight scales up to 3,000 updates, relative to the mean of the
                layer's.
            act_scale_lr: same of activation scales up to 3,000 updates, relative to the mean of the
                bank.
            feature_weight: weight of the inter-layer distillation (v2); 0 is none.
            freezing: stop weights that keep turning (v2).
        """

        serial: bool = True
        serial_first: bool = True
        rounds: Annotated[int, AtLeast(0)] = 1
        epochs: Annotated[int, AtLeast(0)] = 1
        images: Annotated[int, AtLeast(0)] = 16
        batch: Annotated[int, AtLeast(1)] = 8
        window: Annotated[int, AtLeast(1)] = 2
        guided: bool = False
        per_call: bool = True
        column_start: bool = False
        tables: bool = True
        mixed: bool = True
        steps: tuple[int, ...] = (-2, -1, 1, 2, 3, 4)
        points: Annotated[int, AtLeast(1)] = 32
        mixed_channels: bool = False
        weight_lr: Annotated[float, AtLeast(0)] = 0.005
        weight_scale_lr: Annotated[float, AtLeast(0)] = 1e-3
        act_scale_lr: Annotated[float, AtLeast(0)] = 1e-3
        feature_weight: Annotated[float, AtLeast(0)] = 0.0
        freezing: bool = False

    info = MethodInfo(
        title="Serial-to-Parallel",
        venue="arXiv 2024",
        paper="arXiv:2412.06661",
        summary="learns on its own walks, then on large batches of all calls; ranges by call",
        version=3,
        bibtex=(
            "@article{li2024efficiency, title={Efficiency Meets Fidelity: A Novel Quantization "
            "Framework for Stable Diffusion}, author={Li, Shuaiting and Deng, Juncan and others}, "
            "journal={arXiv:2412.06661}, year={2024}}"
        ),
        deviations=(
            "a reimplementation, no official code was found and rates, lengths, losses and the "
            "order of stages are not in what restates the paper: they are options, listed in "
            "docs/methods/serial_to_parallel.md",
            "mixed precision by layer (v1) is under policy budget: widths near the requested one, "
            "by integer programming and at the same mean (v1: sensitive layers at 8 bits)",
            "tables hold what time layers give at the policy's widths: in full precision under "
            "policy published alone",
            "the sampler's step in the serial stage is fitted to the recorded walks",
        ),
    )
    supports = Capabilities(board_bits=("w4a8", "w4a4"), budget=True, whole_network=True)
    published = published.SERIAL_PARALLEL
    switches: ClassVar[Mapping[str, Any]] = {
        "serial": False,
        "epochs": 0,
        "rounds": 0,
        "per_call": False,
        "mixed": False,
    }
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Choose widths, calibrate, learn on own walks, tabulate."""
        points = ctx.range_points()
        time = time_layers(ctx, points) if self.options.tables else TimeLayers()
        chosen = self.allocation(ctx, points, time) if self.options.mixed else None
        model = ctx.wrap(widths={} if chosen is None else chosen.widths)
        if chosen is not None:
            model.notes["allocation"] = chosen.note()
        kept = time.kept | tabulate_time_layers(model, points, time.floating)
        model.set_weight_ranges(mse_range)
        plan = CalibrationPlan(per_call=self.options.per_call)
        calibrate_activations(model, points, default_range, plan)
        if self.options.mixed_channels:
            model.notes["widths"] = mix_channels(model, points, ctx.bits.weight)
        if self.options.column_start:
            shares = start_from_columns(model, points, ctx.effort.samples)
            model.notes["column_start"] = {name: round(e, 4) for name, e in shares.items()}
        self.learn(model, ctx, points)
        if self.options.tables:
            kept |= ctx.tabulate(model, time.quantized)
            reasons = dict(Counter(sorted(kept.values())))
            model.notes["time_tables"] = {"tables": len(model.tables), "kept": reasons}
        return model

    def allocation(
        self, ctx: MethodContext, points: CalibrationSet, time: "TimeLayers"
    ) -> Allocation | None:
        """Widths of the layers that run; None where the policy leaves no choice."""
        if ctx.budget is None:
            return None
        budget = ctx.budget.without(time.quantized)

        def rounded(widths: Mapping[str, Bits]) -> QuantizedModel:
            model = ctx.wrap(widths=widths)
            model.set_weight_ranges(mse_range)
            return model

        losses = layer_losses(
            rounded,
            budget.layers,
            candidates(ctx.bits, self.options.steps),
            points.rows(evenly(len(points), self.options.points)),
            acts=False,
        )
        return allocate(losses, budget)

    def learn(self, model: QuantizedModel, ctx: MethodContext, points: CalibrationSet) -> None:
        """The serial and the parallel stages, as many as the preset has room for."""
        rounds = math.ceil(self.options.rounds * ctx.effort.iterations / QUICK)
        if rounds and (self.options.serial or self.options.epochs):
            walking = ctx.walk_points(self.rows(ctx.trajectory, rounds))
            walks = fit_walks(ctx.model, walking)
            apart = ctx.held_out(walking)
            judge = None if apart is None else Judge.of(ctx.model, apart)
            before = None if judge is None else float(judge.errors(model).mean())
            report = distill_on_student_walks(
                model,
                ctx.model,
                walks,
                self.stages(model, ctx, points, walks, rounds),
                seed=ctx.seed,
                progress=ctx.progress,
            )
            model.notes["learning"] = report.note() | {
                "full_precision_rows": len(walks.recorded.targets) + report.teacher_rows,
                "step_fit": round(float(walks.step.error.max()), 6),
            }
            if judge is None:
                model.notes["learning"] |= {"held_out": NOTHING_HELD}
            else:
                held = {"held_before": before, "held_after": float(judge.errors(model).mean())}
                model.notes["learning"] |= held

    def rows(self, recorded: Trajectory, rounds: int) -> int:
        """Rows of the walks that the rounds learn on, all guidance halves of their images."""
        wanted = max(LEAST_FITTED, rounds * self.options.images)
        images = min(recorded.images, wanted) if self.options.images else recorded.images
        return images * recorded.halves

    def stages(
        self,
        model: QuantizedModel,
        ctx: MethodContext,
        points: CalibrationSet,
        walks: RecordedWalks,
        rounds: int,
    ) -> SerialParallel:
        """What learns, and in which order, at rates that fit the number of updates."""
        features: tuple[str, ...] = ()
        if self.options.feature_weight:
            features = tuple(b.name for b in ctx.blocks(model, points) if len(b.layers) > 1)
        stages = SerialParallel(
            {},
            rounds,
            self.options.epochs,
            batch=self.options.batch,
            images=self.options.images,
            window=self.options.window,
            serial=self.options.serial,
            serial_first=self.options.serial_first,
            guided=self.options.guided,
            features=features,
            feature_weight=self.options.feature_weight,
            freezing=Freezing() if self.options.freezing else None,
        )
        return replace(stages, groups=self.groups(stages.updates(walks)))

    def groups(self, updates: int) -> dict[str, Group]:
        """What learns, and how fast, in a run of this length."""
        rates = {
            "weight_scale": (self.options.weight_scale_lr, SCALE_LENGTH),
            "act_scale": (self.options.act_scale_lr, SCALE_LENGTH),
        }
        if self.options.weight_lr:
            rates["weight"] = (self.options.weight_lr, WEIGHT_LENGTH)
        return paced_groups(rates, updates, Decay.COSINE)


@dataclass(frozen=True, slots=True)
class TimeLayers:
    """The layers on the way of the timestep.

    Attributes:
        floating: layers that depend on it alone and that the policy leaves in floating point.
        quantized: those that it quantizes.
        kept: for each other layer, why it stays.
    """

    floating: tuple[str, ...] = ()
    quantized: tuple[str, ...] = ()
    kept: dict[str, str] = field(default_factory=dict)


def time_layers(ctx: MethodContext, points: CalibrationSet) -> TimeLayers:
    """Which layers can become tables, as full precision shows."""
    names = [name for name, info in ctx.graph.layers.items() if info.role in TIME_ROLES]
    few = few_of_each_call(points)
    found = call_outputs(ctx.model, lambda rows: rows.call(ctx.model), few, names)
    bits = ctx.widths.layers
    return TimeLayers(
        tuple(name for name in found.values if bits[name].is_fp),
        tuple(name for name in found.values if not bits[name].is_fp),
        found.reasons,
    )


def few_of_each_call(points: CalibrationSet) -> CalibrationSet:
    """``TOLD`` rows of each sampler call, or all where there are fewer."""
    rows = [(points.step == call).nonzero()[:, 0] for call in calls_of(points)]
    return points.rows(torch.cat([of_call[evenly(len(of_call), TOLD)] for of_call in rows]))


def mix_channels(
    model: QuantizedModel, points: CalibrationSet, bits: int
) -> dict[str, dict[str, float]]:
    """Rank each layer's output channels by what their rounding costs and move bits among them.

    The most sensitive get one bit more, as many of the least sensitive one less: the mean is the
    layer's own. How many is decided by the layer's output error, in steps of a fortieth.

    Returns:
        By layer where it pays, how many were widened, and the error over that of equal widths.
    """
    notes: dict[str, dict[str, float]] = {}
    few = points.rows(evenly(len(points), JUDGED))
    for swap in swap_widths(model, few, bits, mse_range, _sensitivity, _fortieths):
        if swap.count:
            model.layers[swap.name].set_weight_ranges(mse_range, symmetric=False)
            notes[swap.name] = swap.note()
    return notes


def _sensitivity(layer: QuantLayer, errors: Tensor) -> Tensor:
    """The output error of each channel at the layer's own bits, (O,)."""
    return errors[1]


def _fortieths(channels: int) -> list[int]:
    """Fortieths of the channels, up to half of them."""
    return sorted({channels * share // 40 for share in range(21)})
