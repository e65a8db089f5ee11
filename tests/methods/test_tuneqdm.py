"""TuneQDM: integers stay, gains learn, and they win where the structure is a gain."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import FP, Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.model.options.call_gains import CallGains
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.packed.pack import observe, pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.info import Effort
from quantarena.methods.techniques.distill.distill import Distillation
from quantarena.methods.techniques.learn.param_groups import Group
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.testing.conformance import check
from quantarena.methods.tuneqdm import TuneQdm, trainable

CALLS = 4
W2, W4 = Bits(2, 16), Bits(4, 16)


class Between(nn.Module):
    """A layer of 64 channels between two others; ``inner`` gives its inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Linear(4, 64), nn.Linear(64, 48)
        self.last = nn.Linear(48, 4)

    def inner(self, x, timestep):
        return torch.tanh(x)

    def forward(self, sample, timestep=None, return_dict=True):
        x = self.inner(self.first(sample.flatten(2).mT), timestep)
        return (self.last(torch.tanh(self.middle(x))).mT.reshape(sample.shape),)


class Columns(Between):
    """Weights are 0 or 0.3, in every other input channel 0.255, which gets the code of 0.3."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            on = (torch.rand(48, 64) > 0.5).float()
            self.middle.weight.copy_(on * torch.where(torch.arange(64) % 2 == 0, 0.3, 0.255))


class Directions(Between):
    """At each sampler call inputs lie along one direction of their own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ways", torch.randn(CALLS, 64))

    def inner(self, x, timestep):
        way = self.ways[timestep.long()].reshape(-1, 1, 64)
        return x.mean(-1, keepdim=True) * way


def variant(**off):
    """TuneQDM with some of its options set otherwise; timesteps of small samplers are 0 to 3."""
    return lambda: TuneQdm(TuneQdm.Options(**{"horizon": CALLS, **off}))


class Long(TuneQdm):
    """As TuneQDM, with 400 updates whatever the preset has."""

    def schedule(self, effort, calls, weight_bits):
        return super().schedule(replace(effort, iterations=400), calls, 4)


def long(**off):
    """As ``variant``, with 400 updates at a larger rate."""
    return lambda: Long(TuneQdm.Options(**{"horizon": CALLS, "lr": 0.02, **off}))


def rtn(model: QuantizedModel) -> None:
    """Round to nearest, weights only."""
    model.set_weight_ranges(minmax_range)
    model.freeze()


def test_gains_of_inputs_win_where_columns_differ(judged):
    torch.manual_seed(1)
    network = Columns()
    plain, ours, outputs = (
        judged(m, network, W2)[1] for m in (variant(tune=False), long(), long(inputs=False))
    )
    assert plain >= 10 * ours
    assert outputs >= 3 * ours, "d_out alone cannot level columns"


def test_experts_win_where_calls_differ(judged):
    torch.manual_seed(1)
    network = Directions()
    plain, ours, single = (
        judged(m, network, W2)[1] for m in (variant(tune=False), long(), long(experts=1))
    )
    assert plain >= 5 * ours
    assert single >= 2 * ours, "the gain is not the experts'"


def test_before_tuning_it_is_rtn(probe):
    made = variant(tune=False)().run(probe.context(W4, "paper", Effort(16, 4)))
    other = probe.context(W4, "paper", Effort(16, 0)).wrap()
    rtn(other)
    with torch.no_grad():
        ours, wanted = made.run(probe.heldout), other.run(probe.heldout)
    assert (ours - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert all(torch.equal(g, torch.ones_like(g)) for g in gains(made))


def gains(model):
    return [p for layer in model.layers.values() for p in layer.option(CallGains).parameters()]


def test_tuning_changes_gains_and_nothing_else(pixel):
    before, after = (
        variant(tune=t, horizon=1000)().run(pixel.context(W4, "paper", Effort(16, 8)))
        for t in (False, True)
    )
    old, new = before.state(), after.state()
    assert old.keys() == new.keys()
    moved = {name.rsplit("/", 1)[1] for name in old if not torch.equal(old[name], new[name])}
    assert moved == {"gain_in", "gain_out"}
    for (name, layer), twin in zip(after.layers.items(), before.layers.values(), strict=True):
        bias = layer.bias
        assert bias is None or torch.equal(bias, twin.bias), name
    note = after.notes["tuning"]
    assert note["updates"] == 8


def test_one_update_moves_the_first_calls_expert_alone(pixel, monkeypatch):
    rates = {"gain_out": Group(2e-3), "gain_in": Group(2e-3)}
    monkeypatch.setattr(TuneQdm, "schedule", lambda self, *_: Distillation(1, rates))
    made = TuneQdm().run(pixel.context(W4, "paper", Effort(16, 1)))
    for layer in made.layers.values():
        first = int(layer.option(CallGains).of_call[0])
        for rows in layer.option(CallGains).parameter_groups().values():
            moved = [not torch.equal(row, torch.ones_like(row)) for row in rows]
            assert not any(m for index, m in enumerate(moved) if index != first)
    assert any(not torch.equal(g, torch.ones_like(g)) for g in gains(made))


def test_without_inputs_it_is_peqa(pixel):
    made = variant(inputs=False)().run(pixel.context(W4, "paper", Effort(16, 8)))
    kept = [p for layer in made.layers.values() for p in layer.option(CallGains).d_in]
    assert all(torch.equal(p, torch.ones_like(p)) for p in kept)


def test_parameters_are_counted(transformer):
    made = TuneQdm().run(transformer.context(W4, "paper", Effort(16, 1)))
    sides = sum(sum(layer.weight.shape[:2]) for layer in made.layers.values())
    assert trainable(made) == 4 * sides == made.notes["tuning"]["parameters"]
    assert trainable(made, inputs=False) == 4 * sum(len(x.weight) for x in made.layers.values())
    plain = transformer.context(W4, "paper", Effort(16, 1)).wrap()
    assert trainable(plain) == 0


@pytest.mark.parametrize("bits", [W4, Bits(8, 16)])
def test_packed_codes_are_the_fake_path(probe, bits):
    made = TuneQdm().run(probe.context(bits, "paper", Effort(16, 4)))
    packed = pack(made)
    assert packed.backend == "weight-only"
    assert parity(made, packed, probe.heldout).max_rel <= 1e-5
    seen = observe(made, packed, probe.model)
    assert bits.weight <= seen.code_bits <= 8
    assert set(seen.coverage) >= {str(bits)}


def test_published_policy_has_every_layer_at_the_requested_bits(pixel):
    context = pixel.context(W4, "paper", Effort(16, 1))
    context = replace(context, policy=TuneQdm.published)
    made = TuneQdm().run(context)
    assert set(made.layers) == set(pixel.graph.layers)
    assert observe(made, pack(made), pixel.model).code_bits == 4.0
    assert context.policy is not UNIFORM


def test_two_runs_are_one(pixel):
    one, other = (TuneQdm().run(pixel.context(W4, "paper", Effort(16, 4))) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(gains(one), gains(other), strict=True))


def test_updates_are_the_papers_at_most():
    lengths = (0, 90, 1_000, 20_000)
    updates = [TuneQdm().schedule(Effort(16, n), 20, 4).updates for n in lengths]
    assert updates == [0, 100, 400, 400]


def test_rates_are_in_proportion_to_the_step_of_the_codes():
    rates = {}
    for bits in (2, 4, 8):
        groups = TuneQdm().schedule(Effort(16, 100), 20, bits).groups
        assert {group.relative for group in groups.values()} == {True}
        (rates[bits],) = {group.lr for group in groups.values()}
    assert rates[4] == TuneQdm.Options().lr
    assert (rates[2], rates[8]) == (pytest.approx(5 * rates[4]), pytest.approx(rates[4] / 17))


@pytest.mark.parametrize("bits", [FP, Bits(4, 4), Bits(1, 16)])
def test_other_widths_are_unsupported(pixel, bits):
    with pytest.raises(Unsupported, match="tuneqdm does not quantize"):
        TuneQdm().run(pixel.context(bits, "paper", Effort(8, 0)))


@pytest.mark.slow
def test_conformance():
    results = check("tuneqdm", effort=Effort(samples=8, iterations=4))
    assert {(r.name, r.model): r.detail for r in results if not r.passed} == {}
