"""QuEST: what each stage changes and what it leaves, and where tuning a few layers wins."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantarena.methods import hyper_parameters, published
from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import AttentionBits, Bits
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import Role, trace
from quantarena.methods.info import Effort
from quantarena.methods.quest import RECIPES, QuEST, Stage, attention_layers, time_layers
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.testing.conformance import check

CALLS = 4


class Timed(nn.Module):
    """Only the layer that brings the timestep in has fewer than 8 bits."""

    def __init__(self):
        super().__init__()
        self.embed, self.again = nn.Linear(8, 64), nn.Linear(64, 64)
        self.enter = nn.Linear(64, 32)
        self.inlet = nn.Conv2d(4, 32, 3, padding=1)
        self.outlet = nn.Conv2d(32, 4, 3, padding=1)
        with torch.no_grad():
            self.enter.weight *= 6

    def forward(self, sample, timestep=None, return_dict=True):
        angle = timestep.reshape(-1, 1).expand(len(sample), 1) * torch.logspace(-1, 1, 4)
        x = F.silu(self.embed(torch.cat([angle.sin(), angle.cos()], 1)))
        time = self.enter(F.silu(self.again(x)))[..., None, None]
        return (self.outlet(F.silu(self.inlet(sample) + time)),)


class Imbalanced(nn.Module):
    """Three of 64 hidden channels are 20 times the others, undone by the layer that reads them."""

    def __init__(self):
        super().__init__()
        self.first, self.up = nn.Linear(4, 32), nn.Linear(32, 64)
        self.down, self.last = nn.Linear(64, 32), nn.Linear(32, 4)
        with torch.no_grad():
            self.up.weight[:3] *= 20
            self.up.bias[:3] *= 20
            self.down.weight[:, :3] /= 20

    def forward(self, sample, timestep=None, return_dict=True):
        x = self.up(torch.tanh(3 * self.first(sample.flatten(2).mT)))
        return (self.last(torch.tanh(self.down(torch.relu(x)))).mT.reshape(sample.shape),)


def variant(**off):
    """QuEST with some of its ideas set otherwise."""
    return lambda: QuEST(QuEST.Options(**off))


def error(method, network, bits, iterations=400):
    """Relative error on other images of the model that a method makes."""
    network = network.eval().requires_grad_(False)
    sample = torch.randn(CALLS, 24, 4, 6, 6, generator=torch.Generator().manual_seed(3))
    times = torch.arange(CALLS).float()
    recorded = Trajectory(sample[:, :16], times, {})
    graph = trace(network, sample[0, :2], timestep=times[:1])
    effort = Effort(32, iterations)
    made = method().run(MethodContext(network, graph, recorded, bits, UNIFORM, "paper", 0, effort))
    step = torch.arange(CALLS).repeat_interleave(8)
    points = Trajectory(sample[:, 16:], times, {}).pick(step, torch.arange(8).repeat(CALLS))
    with torch.no_grad():
        target = points.call(network)
        return float((made.run(points) - target).square().mean() / target.square().mean())


@pytest.mark.parametrize(
    ("network", "stage", "settings", "factor"),
    [
        (Timed, "time_layers", {"weight_lr": 0.02}, 1.5),
        (Imbalanced, "attention_layers", {"batch": 4, "weight_lr": 0.1}, 1.3),
    ],
)
def test_tuned_weights_win_where_their_layers_make_the_error(network, stage, settings, factor):
    network = network()
    bits = Bits(3, 3) if stage == "time_layers" else Bits(4, 3)
    ours = error(variant(**settings), network, bits)
    assert error(RoundToNearest, network, bits) >= factor * ours
    assert error(variant(**settings, **{stage: False}), network, bits) >= factor * ours
    assert error(variant(**settings, weights=False), network, bits) >= factor * ours


def state(probe, **off):
    made = variant(weight_lr=0.05, **off)().run(probe.context(Bits(4, 4), "paper", Effort(16, 8)))
    return made.state()


def changed(one, other):
    """The layers whose codes, and those whose activation scales, differ."""
    kinds = [("weight_codes", set()), ("act_scale", set())]
    for name, value in one.items():
        for kind, layers in kinds:
            if name.endswith(kind) and not torch.equal(value, other[name]):
                layers.add(name.removeprefix("layer:").split("/")[0])
    return kinds[0][1], kinds[1][1]


def test_each_stage_changes_its_layers_and_no_others(conditional):
    start = state(conditional, time_layers=False, attention_layers=False)
    first = state(conditional, attention_layers=False)
    both = state(conditional)
    time, attention = (set(find(conditional.graph)) for find in (time_layers, attention_layers))
    codes, scales = changed(first, start)
    assert codes
    assert codes <= time
    assert scales == time
    codes, scales = changed(both, first)
    assert codes
    assert codes <= attention
    assert scales == set(conditional.graph.layers) - time


def test_which_layers_are_tuned(conditional, transformer):
    roles = conditional.graph.layers
    assert {roles[name].role for name in time_layers(conditional.graph)} == {Role.EMB_PROJ}
    found = attention_layers(conditional.graph)
    assert any(name.endswith("attn2.to_q") for name in found)
    assert not any(name.endswith(("attn2.to_k", "attn2.to_v")) for name in found)
    assert {roles[name].role for name in found} == {Role.QKV, Role.FF}
    roles = transformer.graph.layers
    assert {roles[name].role for name in time_layers(transformer.graph)} == {Role.ADALN}


def test_release_repeats_the_outputs_error_and_compares_no_attention_layer(conditional):
    time, attention = RECIPES["release"].time, RECIPES["release"].attention
    assert (time, attention, RECIPES["paper"].attention) == (1.0, 0.0, 1.0)
    effort = Effort(16, 4)
    made = {name: QuEST().run(conditional.context(Bits(4, 8), name, effort)) for name in RECIPES}
    losses = {name: model.notes["tuning"]["time"]["loss_last"] for name, model in made.items()}
    assert losses["paper"] != losses["release"]


def test_lengths_and_rates_are_the_releases_where_there_is_room():
    layers = frozenset({"a"})
    for paper, updates, batch, scale in (
        (hyper_parameters.QUEST_TIME, 24_000, 2, 1e-5),
        (hyper_parameters.QUEST_ATTENTION, 6_400, 4, 1e-4),
    ):
        stage = Stage("", layers, layers, paper, 1.0)
        found = QuEST().schedule(stage, Effort(16, 20_000), 20, layers, 1.0)
        assert (found.updates, paper.batch) == (updates, batch)
        assert (found.groups["weight"].lr, found.groups["act_scale"].lr) == (1e-5, scale)
        assert found.groups["weight"].layers == layers
        assert [(term.module, term.calls, term.weight) for term in found.terms] == [("a", 1, 1.0)]
        short = QuEST().schedule(stage, Effort(16, 100), 20, layers, 0.0)
        assert (short.updates, short.terms) == (20, ())
        assert not QuEST().schedule(stage, Effort(16, 0), 20, layers, 0.0).updates


def test_published_widths(conditional):
    graph, table = conditional.graph, published.QUEST
    widths = table.assign(graph, Bits(4, 4))
    special = {name: bits for name, bits in widths.items() if bits != Bits(4, 4)}
    assert special == {"conv_in": Bits(4, 8), "conv_out": Bits(4, 8)}
    products = table.assign_attention(graph, Bits(4, 4))
    assert products == dict.fromkeys(graph.attention, AttentionBits(4, 4, 4, 4))


@pytest.mark.slow
def test_conformance():
    results = check("quest", effort=Effort(samples=8, iterations=4))
    assert {(r.name, r.model): r.detail for r in results if not r.passed} == {}
