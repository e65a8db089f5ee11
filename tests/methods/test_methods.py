"""What sets the methods apart: each beats round-to-nearest where its idea says it should."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import FP, FP_WIDTH, Bits
from quantarena.methods.core.errors import QuantArenaError, Unsupported
from quantarena.methods.core.model.policy import UNIFORM, Policy
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.quantizers.weight import WeightQuantizer
from quantarena.methods.core.record.trajectory import CalibrationSet, Trajectory
from quantarena.methods.core.trace.network import trace
from quantarena.methods.fp import FullPrecision
from quantarena.methods.info import Effort
from quantarena.methods.q_diffusion import QDiffusion
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.techniques.learn.param_groups import Decay
from quantarena.methods.techniques.learn.schedule import Schedule


class Skip(nn.Module):
    """A U-Net in small: the skip half of the concatenation is ``gap`` times the deep half."""

    def __init__(self, gap):
        super().__init__()
        self.inlet = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(16, 8, 1)
        self.outlet = nn.Conv2d(8, 3, 1)
        self.gap = gap
        with torch.no_grad():
            self.shortcut.weight[:, 8:] /= gap

    def forward(self, sample, timestep, return_dict=True):
        skip = self.inlet(sample)
        deep = torch.tanh(self.deep(skip))
        return (self.outlet(self.shortcut(torch.cat([deep, self.gap * skip], 1))),)


def without_split():
    return QDiffusion(QDiffusion.Options(split_shortcuts=False))


FLAT = Policy("flat")


def context(model, bits, effort, policy=FLAT, seed=0):
    """A method's context on random trajectories, and points of others to be judged on."""
    make = torch.Generator().manual_seed(7)
    sample = torch.randn(4, 24, 3, 8, 8, generator=make)
    recorded = Trajectory(sample[:, :16], torch.arange(4).flip(0), {})
    held: Tensor = sample[:, 16:].flatten(0, 1)
    points = CalibrationSet(held, torch.zeros(len(held)), torch.zeros(len(held)))
    graph = trace(model, sample[0, :2], timestep=recorded.timestep[:1])
    ctx = MethodContext(model, graph, recorded, bits, policy, "paper", seed, effort)
    return ctx, points


def error(method, model, bits, iterations=0):
    ctx, points = context(model, bits, Effort(32, iterations))
    made = method().run(ctx)
    with torch.no_grad():
        target = points.call(model)
        return float((points.call(made.module) - target).square().mean() / target.square().mean())


@pytest.fixture
def skip():
    torch.manual_seed(0)
    return Skip(200.0).eval().requires_grad_(False)


def test_split_beats_rtn_fivefold_on_a_planted_gap(skip):
    rtn = error(RoundToNearest, skip, Bits(8, 4))
    split = error(QDiffusion, skip, Bits(8, 4))
    whole = error(without_split, skip, Bits(8, 4))
    assert rtn >= 5 * split
    assert whole >= 4 * split, "the gain is not the split's"


def test_reconstruction_beats_rtn_on_weights_and_needs_its_iterations(pixel):
    def judged(method, iterations):
        ctx = pixel.context(Bits(3, 8), "paper", Effort(24, iterations))
        made = method().run(ctx)
        with torch.no_grad():
            target = pixel.heldout.call(pixel.model)
            gap = pixel.heldout.call(made.module) - target
        return float(gap.square().mean() / target.square().mean())

    rtn, none, many = (
        judged(RoundToNearest, 0),
        judged(without_split, 0),
        judged(without_split, 60),
    )
    assert many <= rtn / 1.5
    assert many <= none / 1.2, "the gain is not reconstruction's"


def test_switches_change_the_result(skip):
    models = [
        m().run(context(skip, Bits(4, 4), Effort(32, 0))[0]) for m in (QDiffusion, without_split)
    ]
    parts = [len(m.layers["shortcut"].parts) for m in models]
    assert parts == [2, 1]


def test_q_diffusion_notes_what_it_did(pixel):
    ctx = pixel.context(Bits(4, 8), "paper", Effort(16, 2))
    ticks = []
    ctx = replace(ctx, progress=lambda done, total: ticks.append((done, total)))
    model = QDiffusion().run(ctx)
    table = model.notes["reconstruction"]
    assert len(table["weights"]) == len(table["acts"]) > 5
    losses = {"before", "after", "held_before", "held_after"}
    assert {"block", "seconds", *losses} == set(table["weights"][0])
    assert ticks[-1][0] == ticks[-1][1] == 2 * len(table["weights"])
    assert model.notes["quantize_seconds"] > 0
    assert ctx.calibration["points"] == 16
    assert len(ctx.calibration["sha256"]) == 64


def test_schedules_are_the_papers_at_the_papers_length():
    weights, acts = QDiffusion().schedules(20_000)
    assert (weights.iterations, weights.norm, list(weights.groups)) == (20_000, 2.0, ["rounding"])
    assert (acts.iterations, acts.norm, list(acts.groups)) == (5_000, 2.4, ["act_scale"])
    assert weights.groups["rounding"].decay is Decay.CONSTANT
    assert acts.groups["act_scale"].decay is Decay.COSINE
    published = Schedule.adaround(20_000)
    assert published.groups["rounding"].lr == 1e-3
    term = published.rounding
    assert (term.strength, term.warmup, term.beta_start, term.beta_end) == (0.01, 0.2, 20.0, 2.0)
    assert QDiffusion().schedules(0)[0].iterations == 0


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_the_release_presses_only_the_first_half_of_a_split_layer(skip, variant, monkeypatch):
    class Pressed(QDiffusion):
        def schedules(self, iterations, variant="paper"):
            weights, acts = super().schedules(iterations, variant)
            return replace(weights, rounding=replace(weights.rounding, strength=10.0)), acts

    undecided = []

    def watch(self, weight, freeze=WeightQuantizer.freeze):
        if self.soft is not None:
            rounding = self.soft.rounding()
            undecided.append(bool(((rounding > 0.05) & (rounding < 0.95)).any()))
        freeze(self, weight)

    monkeypatch.setattr(WeightQuantizer, "freeze", watch)
    ctx = replace(context(skip, Bits(4, 4), Effort(32, 200))[0], variant=variant)
    Pressed().run(ctx)
    assert undecided[2:4] == [False, variant == "release"]  # the halves of the shortcut


def test_the_release_learns_scales_at_one_absolute_rate():
    weights, acts = QDiffusion().schedules(20_000, "release")
    assert weights.groups["rounding"].lr == 1e-3
    assert (weights.batch, acts.batch) == (8, 8)
    assert weights.rounding.first_part
    group = acts.groups["act_scale"]
    assert (group.lr, group.relative, group.decay) == (4e-4, False, Decay.COSINE)


def test_full_precision_takes_only_full_precision(pixel):
    model = FullPrecision().run(pixel.context(FP, "paper", Effort(8, 0)))
    assert model.layers == {}
    with pytest.raises(Unsupported, match="4 bits"):
        FullPrecision().run(pixel.context(Bits(4, 4), "paper", Effort(8, 0)))


@pytest.mark.parametrize("bits", [Bits(1, 8), Bits(8, 1), FP, Bits(16, 4)])
def test_rtn_says_what_it_cannot_do(pixel, bits):
    with pytest.raises(Unsupported, match="rtn does not quantize"):
        RoundToNearest().run(pixel.context(bits, "paper", Effort(8, 0)))


def test_rtn_quantizes_weights_alone(pixel):
    made = RoundToNearest().run(pixel.context(Bits(4, FP_WIDTH), "paper", Effort(8, 0)))
    parts = [part for layer in made.layers.values() for part in layer.parts]
    assert all(part.act_quantizer is None for part in parts)
    assert any(part.weight_quantizer.bits == 4 for part in parts)
    assert parity(made, pack(made), pixel.heldout.rows(slice(0, 4))).max_rel <= 1e-5


def test_unknown_variant_is_unsupported(pixel):
    with pytest.raises(Unsupported, match="no variant 'release'"):
        RoundToNearest().run(pixel.context(Bits(4, 4), "release", Effort(8, 0)))


class Draws(RoundToNearest):
    def quantize(self, ctx):
        model = super().quantize(ctx)
        model.notes["draws"] = (random.random(), float(np.random.rand()), float(torch.rand(())))
        return model


def test_every_generator_is_seeded(pixel):
    found = [
        Draws().run(pixel.context(Bits(8, 8), "paper", Effort(8, 0), seed)).notes["draws"]
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[0], found[2], strict=True))


class Greedy(RoundToNearest):
    """Keeps eight bits where four were asked."""

    def quantize(self, ctx):
        return super().quantize(replace(ctx, bits=Bits(8, 8)))


def test_other_widths_than_the_policys_are_caught(pixel):
    ctx = pixel.context(Bits(4, 4), "paper", Effort(8, 0))
    assert ctx.policy is UNIFORM
    with pytest.raises(QuantArenaError, match="is w8a8, the policy says w4a4"):
        Greedy().run(ctx)
