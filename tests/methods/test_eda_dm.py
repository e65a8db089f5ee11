"""EDA-DM: where its points come from, what its reconstruction learns, and where its ideas win."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.policy import FLOAT, Policy
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import Role, trace
from quantarena.methods.eda_dm import EDADM
from quantarena.methods.info import Capabilities, Effort
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.techniques.learn.param_groups import Decay
from quantarena.methods.techniques.learn.reconstruct import reconstruct
from quantarena.methods.testing.conformance import check

CALLS, ROWS, ALIKE = 50, 16, 15
ENDS_FLOAT = Policy("flat", roles={Role.INPUT: FLOAT, Role.OUTPUT: FLOAT})


def without(**switches):
    """The method with some ideas switched off."""
    return lambda: EDADM(EDADM.Options(**switches))


class Drifting(nn.Module):
    """Features of the last calls are alike; before, they have another direction and grow apart."""

    def __init__(self, gap, alike):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.gap, self.alike = gap, alike

    def forward(self, sample, timestep, return_dict=True):
        early = (timestep - self.alike + 1).clamp(min=0).reshape(-1, 1, 1)
        x = torch.tanh(self.first(sample.flatten(2).mT))
        x = torch.where(early > 0, 1 + x * (1 + self.gap * early / CALLS), x)
        return (self.last(self.middle(x)).mT.reshape(sample.shape),)


def recorded(seed=3):
    make = torch.Generator().manual_seed(seed)
    sample = torch.randn(1, ROWS, 4, 6, 6, generator=make).expand(CALLS, -1, -1, -1, -1)
    noise = torch.randn(sample.shape, generator=make)
    return Trajectory(sample + 0.05 * noise, torch.arange(CALLS).flip(0).float(), {})


def drift(method, gap, variant="paper", alike=ALIKE):
    """A context on the drifting network, and the made model's error at the calls that are alike."""
    torch.manual_seed(0)
    network = Drifting(gap, alike).eval().requires_grad_(False)
    trajectory = recorded()
    graph = trace(network, trajectory.sample[0, :2], timestep=trajectory.timestep[:1])
    ctx = MethodContext(
        network, graph, trajectory, Bits(8, 4), ENDS_FLOAT, variant, 0, Effort(100, 0)
    )
    made = method().run(ctx)
    calls = torch.arange(CALLS - alike, CALLS).repeat_interleave(2)
    points = recorded(seed=4).pick(calls, torch.arange(len(calls)) % ROWS)
    with torch.no_grad():
        target = points.call(network)
        error = (made.run(points) - target).square().mean() / target.square().mean()
    return ctx, float(error)


def test_dense_and_diverse_calls_win_where_the_others_drift():
    ctx, ours = drift(without(radius=0.02), 10.0)
    drawn = ctx.calibration["ranges"]
    assert ctx.calibration["points"] == 100
    near = sum(n for step, n in ctx.calibration["steps"].items() if int(step) >= CALLS - ALIKE)
    same = sum(n for step, n in drawn["steps"].items() if int(step) >= CALLS - ALIKE)
    assert same >= 0.7 * drawn["points"], "ranges are found on the same choice of calls"
    assert near >= 70  # of 100; 30 with even steps
    assert 2.5 * ours <= drift(RoundToNearest, 10.0)[1]
    uniform = drift(without(tdac=False), 10.0)[1]
    assert 1.5 * ours <= uniform, "the gain is not the selection's"
    assert 1.2 * drift(EDADM, 10.0)[1] <= uniform, "the radius by quantile selects nothing"


def test_the_default_radius_wins_where_half_of_the_calls_are_alike():
    """A quarter of all pairs of calls are then near: what the quantile takes for near."""
    ctx, ours = drift(EDADM, 40.0, alike=26)
    near = sum(n for step, n in ctx.calibration["steps"].items() if int(step) >= CALLS - 26)
    assert near >= 75  # of 100; 52 with even steps
    uniform, no_density = (
        drift(without(**off), 40.0, alike=26)[1] for off in ({"tdac": False}, {"radius": 0.0})
    )
    assert 5 * ours <= uniform
    assert 2 * ours <= no_density, "another radius does as well"


def test_selection_does_not_matter_where_nothing_drifts():
    ours, uniform = drift(EDADM, 0.0)[1], drift(without(tdac=False), 0.0)[1]
    assert ours == pytest.approx(uniform, rel=0.25)


def judged(probe, method, iterations):
    """Relative error on points of other images at w3a4."""
    made = method().run(probe.context(Bits(3, 4), "paper", Effort(24, iterations)))
    with torch.no_grad():
        target = probe.heldout.call(probe.model)
        gap = made.run(probe.heldout) - target
    return float(gap.square().mean() / target.square().mean())


def test_reconstruction_beats_rtn_and_needs_its_iterations(pixel):
    ours = judged(pixel, EDADM, 400)
    assert 1.5 * ours <= judged(pixel, RoundToNearest, 0)
    assert 1.2 * ours <= judged(pixel, EDADM, 0), "the gain is not reconstruction's"


def test_points_are_as_many_as_asked_and_the_samplers_own(probe):
    ctx = probe.context(Bits(8, 8), "paper", Effort(21, 0))
    points = ctx.draw(EDADM().steps(ctx)(21))
    assert len(points) == sum(ctx.calibration["steps"].values()) == 21
    assert "TDAC" in ctx.calibration["policy"]
    assert torch.equal(points.timestep, probe.trajectory.timestep[points.step])
    for sample, step in zip(points.sample, points.step, strict=True):
        assert (probe.trajectory.sample[step] == sample).flatten(1).all(1).any()


def test_radius_is_the_methods_or_the_releases(pixel):
    ctx = pixel.context(Bits(8, 8), "paper", Effort(16, 0))
    assert EDADM().steps(ctx)(16).radius is None
    assert without(radius=0.7)().steps(ctx)(16).radius == 0.7
    released = EDADM().steps(replace(ctx, variant="release"))(16)
    assert (released.radius, released.weight) == (3.0, 1.2)


def test_schedules_are_the_papers_at_the_papers_length():
    for variant in ("paper", "release"):
        schedule = EDADM().schedule(20_000, variant, 4)
        assert (schedule.iterations, schedule.batch, schedule.norm) == (5_000, 32, 2.0)
        assert (schedule.layers, schedule.mix, schedule.act_drop) == (0.8, 0.5, 0.5)
        assert set(schedule.groups) == {"rounding", "act_scale"}
    released = EDADM().schedule(200, "release", 4)
    assert (released.iterations, released.batch) == (50, 4)
    assert released.rounding.strength == 0.0
    assert released.groups["rounding"].decay is Decay.COSINE
    assert [g.lr for g in released.groups.values()] == [0.5, 5e-4]
    assert [g.lr for g in EDADM().schedule(200, "release", 8).groups.values()] == [5e-2, 1e-3]
    assert EDADM().schedule(0, "paper", 4).iterations == 0


def test_switches_are_the_terms_of_the_schedule():
    assert without(layer_terms=False)().schedule(200, "paper", 4).layers == 0.0
    plain = without(mixing=False)().schedule(200, "paper", 4)
    assert (plain.mix, plain.act_drop) == (0.0, 0.0)


@pytest.fixture
def watched(monkeypatch):
    """Every reconstruction that the method asks for."""
    seen = []

    def spy(model, blocks, points, schedule, **options):
        seen.append((schedule, options["acts"]))
        return reconstruct(model, blocks, points, schedule, **options)

    monkeypatch.setattr("quantarena.methods.eda_dm.reconstruct", spy)
    return seen


@pytest.mark.parametrize("joint", [True, False])
def test_weights_and_activations_learn_together_or_in_turn(pixel, watched, joint):
    ctx, ticks = pixel.context(Bits(4, 4), "paper", Effort(8, 4)), []
    ctx = replace(ctx, progress=lambda done, total: ticks.append((done, total)))
    model = without(joint=joint)().run(ctx)
    learned = [(list(schedule.groups), acts) for schedule, acts in watched]
    if joint:
        assert learned == [(["rounding", "act_scale"], True)]
    else:
        assert learned == [(["rounding"], False), (["act_scale"], True)]
    table = model.notes["reconstruction"]
    assert ticks[-1] == (len(table), len(table))
    assert [done for done, _ in ticks] == list(range(1, len(table) + 1))


def test_one_range_a_tensor_and_a_pair_for_split_shortcuts(pixel):
    made = [
        m().run(pixel.context(Bits(4, 4), "paper", Effort(8, 1)))
        for m in (EDADM, without(split_shortcuts=False))
    ]
    parts = [[len(x.parts) for x in model.layers.values()] for model in made]
    assert max(parts[0]) == 2
    assert max(parts[1]) == 1
    for layer in made[0].layers.values():
        for part in layer.parts:
            assert part.static.scale.shape == ()  # no axis of sampler calls
            assert part.static.steps == 0


def test_hardening_gap_is_noted_and_the_release_pays_it(pixel):
    gaps = {}
    for variant in ("paper", "release"):
        model = EDADM().run(pixel.context(Bits(3, 8), variant, Effort(16, 40)))
        table = model.notes["reconstruction"]
        losses = {"before", "soft", "after", "held_before", "held_after"}
        assert {"block", "seconds", *losses} == set(table[0])
        gaps[variant] = sum(row["after"] - row["soft"] for row in table)
    assert gaps["release"] > 0, "no regulariser, and yet no jump"


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_conforms(variant, monkeypatch):
    monkeypatch.setattr(EDADM, "supports", Capabilities(variants=(variant,)))
    results = check("eda_dm", effort=Effort(samples=16, iterations=1))
    assert [f"{r.name} on {r.model}: {r.detail}" for r in results if not r.passed] == []
    assert {f"{switch} matters" for switch in EDADM.switches} <= {r.name for r in results}
