"""Networks that learn on packed codes: what changes, what never does, what is packed in the end."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.methods import hyper_parameters
from quantarena.methods.core.bits import FP, Bits
from quantarena.methods.core.clock import CallSchedule
from quantarena.methods.core.errors import UserError
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.learn.param_groups import Decay
from quantarena.methods.techniques.personalise.layer import GainsTuning
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.tuning import Approach, Recipe, from_float, from_packed

W4 = Bits(4, 16)
CALLS = CallSchedule("", (900.0, 600.0, 300.0, 0.0))
PACKED = [Approach.LORA, Approach.PEQA, Approach.TUNEQDM]


class Small(nn.Module):
    """Convolutions and linears, one in groups, around a normalization."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.deep, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Linear(8, 4)

    def forward(self, sample, timestep=None, return_dict=True):
        x = torch.nn.functional.silu(self.norm(self.first(sample)))
        return (self.last(self.deep(x).movedim(1, -1)).movedim(-1, 1),)


def widths(network, bits=W4):
    graph = trace(network, torch.randn(2, 4, 6, 6))
    return dict.fromkeys(graph.layers, bits), graph


def started(approach, **more):
    network = Small().eval()
    return from_float(copy.deepcopy(network), widths(network)[0], Recipe(approach, **more), 1000)


def codes(tuned):
    return {n: layer.weight_codes.codes.clone() for n, layer in tuned.layers.items()}


def learn(tuned, recipe, target, steps=(50, 400, 700, 999)):
    x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1))

    def loss(update, number):
        step = steps[number % len(steps)]
        tuned.tell(torch.tensor([step]))
        return (tuned.module(x)[0] - (1 if step < 500 else 2) * target(x)).square().mean()

    return recipe.run(tuned, loss)


@pytest.mark.parametrize("approach", PACKED)
def test_before_tuning_it_is_round_to_nearest(approach):
    network = Small().eval()
    assigned, graph = widths(network)
    model = wrap(network, graph, assigned)
    model.set_weight_ranges(minmax_range)
    model.freeze()
    packed = pack(model)
    tuned = from_float(copy.deepcopy(network), assigned, Recipe(approach), 1000)
    x = torch.randn(2, 4, 6, 6)
    tuned.tell(torch.tensor([10, 990]))
    assert torch.allclose(tuned.module(x)[0], packed.module(x)[0], atol=1e-5)
    mine = tuned.pack(CALLS)
    for name in packed.layers:
        ours, theirs = mine.parts(name)[0], packed.parts(name)[0]
        assert torch.equal(ours.codes, theirs.codes)
        assert torch.equal(ours.weight_scale, theirs.weight_scale)
        assert torch.equal(ours.weight_zero, theirs.weight_zero)


@pytest.mark.parametrize("approach", PACKED)
def test_codes_and_all_else_that_is_frozen_never_change(approach):
    tuned = started(approach, updates=5, lr=0.05)
    learning = {id(one.parameter) for group in tuned.groups().values() for one in group}
    frozen = {
        name: value.clone()
        for name, value in (*tuned.module.named_parameters(), *tuned.module.named_buffers())
        if id(value) not in learning
    }
    assert any(name.endswith("codes") for name in frozen)
    losses = learn(tuned, Recipe(approach, updates=20, lr=0.02), lambda x: 2 * x + 1)
    assert losses[-1] < losses[0]
    now = {**dict(tuned.module.named_parameters()), **dict(tuned.module.named_buffers())}
    assert [name for name, value in frozen.items() if not torch.equal(now[name], value)] == []


@pytest.mark.parametrize("approach", PACKED)
def test_no_float_weight_is_held(approach):
    tuned = started(approach)
    largest = max(p.numel() for p in Small().parameters())
    held = (*tuned.module.named_parameters(), *tuned.module.named_buffers())
    assert [n for n, t in held if t.is_floating_point() and t.numel() >= largest] == []


@pytest.mark.parametrize("approach", PACKED)
def test_the_packed_network_computes_what_was_tuned(approach):
    tuned = started(approach, experts=2)
    learn(tuned, Recipe(approach, updates=10, lr=0.05), lambda x: -x)
    x = torch.randn(1, 4, 6, 6)
    expected = []
    with torch.no_grad():
        for timestep in CALLS.timesteps:
            tuned.tell(torch.tensor([timestep]))
            expected.append(tuned.module(x)[0])
    packed = tuned.pack(CALLS)
    assert packed.backend == "weight-only"
    with torch.no_grad():
        for call, value in enumerate(expected):
            with packed.clock.at(call):
                assert torch.allclose(packed.module(x)[0], value, atol=1e-5)
    by_time = approach is Approach.TUNEQDM
    assert torch.allclose(expected[0], expected[-1]) != by_time


def test_only_the_expert_of_the_timestep_learns():
    tuned = started(Approach.TUNEQDM, experts=4)
    tuned.tell(torch.tensor([600]))
    tuned.module(torch.randn(1, 4, 6, 6))[0].sum().backward()
    for layer in tuned.layers.values():
        assert [g.grad is not None for g in layer.d_in] == [False, False, True, False]
        assert [g.grad is not None for g in layer.d_out] == [False, False, True, False]


def test_rows_of_several_timesteps_are_what_they_are_alone():
    tuned = started(Approach.TUNEQDM, experts=3)
    with torch.no_grad():
        for layer in tuned.layers.values():
            for gain in (*layer.d_in, *layer.d_out):
                gain.copy_(1 + 0.3 * torch.randn_like(gain))
    x, times = torch.randn(3, 4, 6, 6), torch.tensor([10, 990, 20])
    tuned.tell(times)
    together = tuned.module(x)[0]
    for row, timestep in enumerate(times):
        tuned.tell(timestep[None])
        assert torch.allclose(tuned.module(x[row : row + 1])[0], together[row], atol=1e-5)


def test_peqa_learns_outputs_alone():
    tuned = started(Approach.PEQA)
    assert tuned.groups().keys() == {"gain_out"}
    assert tuned.trainable == 8 + 8 + 4


def test_tuning_goes_on_from_a_packed_network():
    tuned = started(Approach.TUNEQDM, experts=2)
    before = codes(tuned)
    learn(tuned, Recipe(updates=10, lr=0.05), lambda x: -x)
    gains = [g.detach().clone() for layer in tuned.layers.values() for g in layer.d_out]
    again = from_packed(tuned.pack(CALLS), Recipe(experts=4), 1000)
    assert {n: c.tolist() for n, c in codes(again).items()} == {
        n: c.tolist() for n, c in before.items()
    }
    doubled = [layer.d_out for layer in again.layers.values() if isinstance(layer, GainsTuning)]
    for mine, one, other in zip(doubled, gains[::2], gains[1::2], strict=True):
        assert [torch.equal(a, b) for a, b in zip(mine, (one, one, other, other), strict=True)]
    assert type(again.module.norm) is nn.GroupNorm
    x = torch.randn(1, 4, 6, 6)
    again.tell(torch.tensor([0]))
    again.module(x)[0].sum().backward()
    assert again.layers["first"].d_out[0].grad is not None


def test_what_cannot_be_tuned_is_one_line():
    network = Small().eval()
    with pytest.raises(UserError, match="weight-only bits"):
        from_float(copy.deepcopy(network), widths(network, Bits(4, 8))[0], Recipe(), 1000)
    with pytest.raises(UserError, match="weight-only bits"):
        from_float(copy.deepcopy(network), widths(network, FP)[0], Recipe(), 1000)
    packed = started(Approach.TUNEQDM, experts=3).pack(CALLS)
    with pytest.raises(UserError, match="has 3 experts already"):
        from_packed(packed, Recipe(experts=4), 1000)
    with pytest.raises(UserError, match="has gains already"):
        from_packed(started(Approach.PEQA).pack(CALLS), Recipe(Approach.LORA), 1000)
    with pytest.raises(UserError, match="no float weights to fine-tune"):
        from_packed(started(Approach.PEQA).pack(CALLS), Recipe(Approach.FULL), 1000)


def test_packed_with_quantized_inputs_is_refused():
    network = Small().eval()
    assigned, graph = widths(network, Bits(4, 8))
    model = wrap(network, graph, assigned)
    model.set_weight_ranges(minmax_range)
    for layer in model.layers.values():
        layer.parts[0].act_quantizer.set_params(minmax_range(torch.randn(99), 8))
    model.freeze()
    with pytest.raises(UserError, match="tune takes weight-only models"):
        from_packed(pack(model), Recipe(), 1000)


def test_a_loss_that_explodes_is_one_line():
    tuned = started(Approach.TUNEQDM)
    with pytest.raises(UserError, match="diverged at update 0"):
        learn(tuned, Recipe(updates=3), lambda x: x * float("nan"))


def test_the_published_recipe_is_the_tables():
    table, recipe = hyper_parameters.TUNE_QDM, Recipe.as_published(experts=2, recompute=True)
    assert (recipe.updates, recipe.accumulate, recipe.rate) == (400, 1, 3e-6)
    assert (recipe.pairs, recipe.recompute, recipe.approach) == (2, True, Approach.TUNEQDM)
    assert recipe.rates() == table.groups
    assert {group.decay for group in recipe.rates().values()} == {Decay.CONSTANT}


def test_published_rates_are_in_the_units_of_the_weight():
    """Adam's first step is its rate: 3e-6 of an input gain, and of what multiplies a code."""
    tuned = started(Approach.TUNEQDM, experts=1)
    losses = learn(tuned, replace(Recipe.as_published(experts=1), updates=1), lambda x: -x)
    assert len(losses) == 1
    for layer in tuned.layers.values():
        scale = float(layer.weight_codes.scale.mean())
        for rows, unit in ((layer.d_in, 1.0), (layer.d_out, scale)):
            steps = (rows[0].detach() - 1).abs() * unit
            assert steps.median() == pytest.approx(3e-6, abs=1e-7 * (1 + unit))
