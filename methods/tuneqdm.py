"""TuneQDM: weights as frozen integers between two vectors that are tuned (Ryu et al., ECCV 2024).

``W = d_out * (codes - zero_point) * d_in``, codes by min-max rounding to nearest and never changed.
Each of N ranges of timesteps has its own pair of vectors, an expert. The paper tunes them to a new
subject; the harness compares with the full-precision model, so here they are tuned to predict what
it predicts along its recorded trajectory. ``quantarena tune`` tunes to a subject.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

from quantarena.methods import hyper_parameters, published
from quantarena.methods.api import (
    FP_WIDTH,
    AtLeast,
    Capabilities,
    Decay,
    Distillation,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    PerCall,
    QuantizedModel,
    distill,
    minmax_range,
    register,
    teacher_walk,
)
from quantarena.methods.core.model.options.call_gains import CallGains, pair_of
from quantarena.methods.info import Effort
from quantarena.methods.techniques.calibrate.by_call import shared_inputs
from quantarena.methods.techniques.distill.teacher_walk import whole_walks
from quantarena.methods.techniques.learn.schedule import paced_groups

EXPERTS = 4
LENGTH = 200
"""Updates up to which the rate holds; longer runs have less, see ``schedule.paced``."""


@register("tuneqdm")
class TuneQdm(Method):
    """Frozen integers, tuned input and output gains, experts by timestep."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of TuneQDM.

        Attributes:
            experts: number N of pairs of vectors; expert ``floor(t * N / horizon)`` acts at
                timestep t.
            horizon: timesteps that the network was trained with.
            inputs: tune ``d_in`` too; if false, this is PEQA (Kim et al., NeurIPS 2023).
            tune: tune at all; if false, this is round-to-nearest, exactly.
            batch: rows of each walk; the paper's 1 at the published length.
            lr: learning rate of both vectors at 4 bits in up to 200 updates, relative to where they
                start; more have less, and at other widths it is in proportion to the step of their
                codes. The published length has the paper's.
        """

        experts: Annotated[int, AtLeast(1)] = EXPERTS
        horizon: Annotated[int, AtLeast(1)] = 1000
        inputs: bool = True
        tune: bool = True
        batch: Annotated[int, AtLeast(1)] = 16
        lr: Annotated[float, AtLeast(0)] = 2e-3

    info = MethodInfo(
        title="TuneQDM",
        venue="ECCV 2024",
        paper="arXiv:2401.04339",
        summary="weight-only integers, frozen; gains of inputs and outputs tuned, by timestep",
        version=3,
        bibtex=(
            "@inproceedings{ryu2024tuneqdm, title={Memory-Efficient Personalization Using "
            "Quantized Diffusion Model}, author={Ryu, Hyogon and Lim, Seohyun and Shim, Hyunjung}, "
            "booktitle={ECCV}, year={2024}}"
        ),
        deviations=(
            "tuned to the full-precision model's noise along its recorded trajectory (paper: to "
            "the images of a new subject, see quantarena tune)",
            "codes are round-to-nearest (paper: a Q-Diffusion checkpoint; its released code: as "
            "here)",
            "d_in starts at 1, so that nothing changes before tuning (paper notes: N(1, 0.01); "
            "its released code: 1)",
            "as many updates as the preset has iterations, 400 at most, of several rows at a "
            "larger rate; preset paper has the paper's 400 of one row at 3e-6, in whole walks, "
            "though these were chosen for the images of a subject",
        ),
    )
    supports = Capabilities(
        act_bits=(FP_WIDTH,), most_iterations=400, board_bits=("w4a16",), whole_network=True
    )
    published = published.TUNE_QDM
    switches: ClassVar[Mapping[str, Any]] = {"tune": False, "inputs": False, "experts": 1}
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Round to nearest, freeze, tune the gains."""
        model = ctx.wrap()
        model.set_weight_ranges(minmax_range)
        points = ctx.draw(PerCall(min(2, ctx.trajectory.rows)))
        schedule = model.use_schedule(points)
        of_call = pair_of(
            torch.tensor(schedule.timesteps), self.options.experts, self.options.horizon
        )
        shared = shared_inputs(model, points)
        for name, layer in model.layers.items():
            layer.freeze()  # codes and zero points do not change again
            if name in shared:  # a batch of several calls could not say which pair it wants
                layer.set_gains(torch.zeros_like(of_call), 1)
            else:
                layer.set_gains(of_call, self.options.experts)
        found = self.schedule(ctx.effort, ctx.trajectory.calls, ctx.bits.weight)
        if self.options.tune and found.updates:
            paper = hyper_parameters.TUNE_QDM.batch
            batch = paper if ctx.effort.as_published else self.options.batch
            walk = teacher_walk(ctx.trajectory, batch)
            report = distill(
                model,
                ctx.model,
                walk,
                found,
                seed=ctx.seed,
                progress=ctx.progress,
                judged=ctx.judged_points(),
            )
            parameters = trainable(model, inputs=self.options.inputs)
            model.notes["tuning"] = {**report.note(), "parameters": parameters}
        return model

    def schedule(self, effort: Effort, calls: int, weight_bits: int) -> Distillation:
        """The schedule of the tuning, in whole walks; the paper's rates at the published length.

        Below it gains have as far to go as rounding has moved the weights. At one rate for all
        widths 8 bits would be worse than rounding to nearest, see docs/methods/tuneqdm.md.
        """
        paper, rate = hyper_parameters.TUNE_QDM, self.options.lr * 15 / ((1 << weight_bits) - 1)
        updates = whole_walks(min(effort.iterations, paper.updates), calls)
        short = paced_groups(dict.fromkeys(paper.groups, (rate, LENGTH)), updates, Decay.LINEAR)
        groups = dict(paper.groups) if effort.as_published else short
        if not self.options.inputs:
            del groups["gain_in"]
        return Distillation(updates, groups)


def trainable(model: QuantizedModel, *, inputs: bool = True) -> int:
    """Parameters that tuning changes: N times the output channels, and the input channels."""
    total = 0
    for layer in model.layers.values():
        gains = layer.option(CallGains)
        if gains is not None:
            kinds = gains.parameter_groups()
            names = ("gain_in", "gain_out") if inputs else ("gain_out",)
            total += sum(p.numel() for name in names for p in kinds[name])
    return total
