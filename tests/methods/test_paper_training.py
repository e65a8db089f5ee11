"""At preset ``paper`` methods train as their papers do: what reaches the code that trains.

The adapters run as they are, on a tiny network; only the number of steps is cut to one, after it
was written down.
"""

import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from quantarena.bench.plan.presets import PRESETS
from quantarena.methods import hyper_parameters, svdquant
from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.options.call_gains import CallGains
from quantarena.methods.core.model.options.low_rank import LowRankBranch
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import trace
from quantarena.methods.info import Effort
from quantarena.methods.registry import method_entry
from quantarena.methods.svdquant import SvdQuant
from quantarena.methods.techniques.learn import reconstruct
from quantarena.methods.techniques.scaling.channel_scaling import smooth
from quantarena.methods.techniques.scaling.low_rank import refine_branch

EFFORT = Effort(32, PRESETS["paper"].grid.budget.iterations, 32)
"""Iterations of preset ``paper``, which alone decide the length; few points."""
W4A8 = Bits(4, 8)


@dataclass(frozen=True)
class Trained:
    """What one training was given.

    Attributes:
        updates: optimiser steps, of a block or of the network.
        batch: rows of a step.
        groups: rate, decay, whether relative, and largest rate, by group of parameters.
        rounding: weight of AdaRound's regulariser.
        norm: exponent of the loss.
    """

    updates: int
    batch: int
    groups: dict
    rounding: float = 0.0
    norm: float = 2.0


def plain(groups):
    """The settings of groups but for the layers in which they learn."""
    return {name: (g.lr, g.decay, g.relative, g.most) for name, g in groups.items()}


def stated(table, **more):
    """A training exactly as the table has it, with further groups."""
    groups = plain({**table.groups, **more})
    return Trained(table.updates, table.batch, groups, table.rounding, table.norm)


@pytest.fixture
def trained(monkeypatch):
    """Run a method on a network; returns its model and the trainings, equal neighbours once."""

    def run(name, context, **options):
        found: list[Trained] = []
        optimise = reconstruct.optimise

        def of_block(problem, learning, schedule, generator):
            terms = (schedule.rounding.strength, schedule.norm)
            groups = plain(schedule.groups)
            seen = Trained(schedule.iterations, schedule.batch, groups, *terms)
            found.extend([] if found[-1:] == [seen] else [seen])
            return optimise(problem, learning, replace(schedule, iterations=1), generator)

        monkeypatch.setattr(reconstruct, "optimise", of_block)
        method = method_entry(name)
        module = sys.modules[method.__module__]
        if distill := getattr(module, "distill", None):

            def of_network(model, teacher, walk, schedule, **rest):
                rows = len(walk.start(torch.Generator()))
                found.append(Trained(schedule.updates, rows, plain(schedule.groups)))
                return distill(model, teacher, walk, replace(schedule, updates=1), **rest)

            monkeypatch.setattr(module, "distill", of_network)
        return method(method.Options(**options)).run(context), found

    return run


H = hyper_parameters
EFFICIENT_DM_RELEASE = stated(H.EFFICIENT_DM, act_zero=H.EFFICIENT_DM_ZERO)
CASES = {
    ("q_diffusion", "paper"): [stated(H.Q_DIFFUSION), stated(H.Q_DIFFUSION_ACTS)],
    ("eda_dm", "paper"): [stated(H.EDA_DM)],
    ("dgq", "paper"): [stated(H.DGQ)],
    ("dgq", "release"): [stated(H.DGQ)],
    ("tfmq_dm", "paper"): [stated(H.TFMQ_DM)],
    ("ptqd", "paper"): [stated(H.PTQD), stated(H.PTQD_ACTS)],
    ("dilate_quant", "paper"): [stated(H.DILATE_QUANT)],
    ("efficient_dm", "paper"): [stated(H.EFFICIENT_DM)],
    ("efficient_dm", "release"): [EFFICIENT_DM_RELEASE],
    ("mpq_dm", "paper"): [stated(H.MPQ_DM)],
    ("quest", "paper"): [stated(t) for t in (H.Q_DIFFUSION, H.QUEST_TIME, H.QUEST_ATTENTION)],
    ("quest", "release"): [stated(t) for t in (H.Q_DIFFUSION, H.QUEST_TIME, H.QUEST_ATTENTION)],
    ("tuneqdm", "paper"): [stated(H.TUNE_QDM)],
}


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_what_trains_is_the_papers(name, variant, pixel, trained):
    bits = Bits(4, 16) if name == "tuneqdm" else W4A8
    assert trained(name, pixel.context(bits, variant, EFFORT))[1] == CASES[name, variant]


def test_every_table_is_trained_with():
    """A table that no adapter hands to its training would be a claim, and nothing else."""
    used = [training for trainings in CASES.values() for training in trainings]
    tables = [value for value in vars(H).values() if isinstance(value, H.Training)]
    assert [t.source for t in tables if stated(t) not in used] == [H.EDA_DM_8_BITS.source]


def test_eda_dm_has_rates_of_its_own_at_8_bits(pixel, trained):
    found = trained("eda_dm", pixel.context(Bits(8, 8), "paper", EFFORT))[1]
    assert found == [stated(H.EDA_DM_8_BITS)]


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_below_nothing_is_the_papers(name, pixel, trained):
    below = replace(EFFORT, iterations=EFFORT.iterations * 9 // 10)
    bits = Bits(4, 16) if name == "tuneqdm" else W4A8
    found = trained(name, pixel.context(bits, "paper", below))[1]
    assert found
    assert not any(training in CASES[name, "paper"] for training in found)


def test_tuneqdm_steps_are_the_papers_in_the_units_of_the_weight(pixel, trained):
    """Adam's first step is the rate: 3e-6 of an input gain, and of what multiplies a code."""
    model, _ = trained("tuneqdm", pixel.context(Bits(4, 16), "paper", EFFORT))
    for layer in model.layers.values():
        gains = layer.option(CallGains)
        first = int(gains.of_call[0])
        scale = float(layer.only_part.weight_quantizer.scale.mean())
        for rows, unit in ((gains.d_in, 1.0), (gains.d_out, scale)):
            steps, exact = (rows[first] - 1).abs() * unit, 1e-7 * (1 + unit)
            assert steps.median() == pytest.approx(3e-6, abs=exact)
            assert steps.max() <= 3e-6 + exact, "the rate is the largest step"


class Wide(nn.Module):
    """A linear layer of 320 channels, an eighth of which is more than 32, between two others."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Linear(4, 320), nn.Linear(320, 320)
        self.last = nn.Linear(320, 4)

    def forward(self, sample, timestep=None, return_dict=True):
        x = torch.tanh(self.first(sample.flatten(2).mT))
        return (self.last(self.middle(x)).mT.reshape(sample.shape),)


@pytest.mark.parametrize("iterations", [EFFORT.iterations, EFFORT.iterations - 1])
def test_svdquant_tries_the_papers_exponents_and_has_its_rank(iterations, monkeypatch):
    tried, ranks = set(), set()

    def smoothed(absmax, weight, *, alpha, beta):
        tried.add((round(alpha, 4), round(beta, 4)))
        return smooth(absmax, weight, alpha=alpha, beta=beta)

    def refined(weight, rank, *rest, **more):
        ranks.add((weight.shape, rank))
        return refine_branch(weight, rank, *rest, **(more | {"rounds": 1}))

    monkeypatch.setattr(svdquant, "smooth", smoothed)
    monkeypatch.setattr(svdquant, "refine_branch", refined)
    network = Wide().eval().requires_grad_(False)
    recorded = Trajectory(torch.randn(2, 4, 4, 2, 2), torch.arange(2).float(), {})
    graph = trace(network, recorded.sample[0, :2], timestep=recorded.timestep[:1])
    effort = replace(EFFORT, iterations=iterations)
    given = MethodContext(network, graph, recorded, Bits(4, 4), UNIFORM, "paper", 0, effort)
    made = SvdQuant().run(given)
    steps = 20 if effort.as_published else 4
    shares = [round(i / steps, 4) for i in range(1, steps)]
    assert tried == {(a, b) for a in shares for b in (0.0, round(1 - a, 4))}
    assert ((320, 320), 32) in ranks
    branch = made.layers["middle"].option(LowRankBranch)
    assert (branch.down.shape, branch.up.shape) == ((32, 320), (320, 32))
