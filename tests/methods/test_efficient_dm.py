"""EfficientDM: merged before quantization, rates by scale, ranges by step, walks from new noise."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.methods import hyper_parameters, published
from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.quantizers.weight import Rounding, WeightQuantizer
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import trace
from quantarena.methods.efficient_dm import RECIPES, EfficientDM
from quantarena.methods.info import Effort
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.techniques.learn.param_groups import Decay, Group
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.testing.conformance import check

CALLS = 4


class Branches(nn.Module):
    """Three branches whose weights differ a hundredfold in scale, which is undone behind them."""

    scales = (0.03, 0.3, 3.0)

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 32), nn.Linear(32, 4)
        self.branches = nn.ModuleList(nn.Linear(32, 32) for _ in self.scales)
        with torch.no_grad():
            for branch, scale in zip(self.branches, self.scales, strict=True):
                branch.weight *= scale
                branch.bias *= scale

    def forward(self, sample, timestep=None, return_dict=True):
        x = torch.tanh(3 * self.first(sample.flatten(2).mT))
        y = sum(torch.tanh(3 * b(x) / s) for b, s in zip(self.branches, self.scales, strict=True))
        return (self.last(y).mT.reshape(sample.shape),)


class Stepped(nn.Module):
    """Activations 50 times larger at the last sampler call than at the first."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Linear(4, 64), nn.Linear(64, 20)
        self.last = nn.Linear(20, 4)

    def forward(self, sample, timestep=None, return_dict=True):
        gain = 50.0 ** (timestep / (CALLS - 1)).reshape(-1, 1, 1)
        x = torch.tanh(self.first(sample.flatten(2).mT)) * gain
        return (self.last(torch.tanh(self.middle(x) / gain)).mT.reshape(sample.shape),)


def variant(**off):
    """EfficientDM with some of its ideas set otherwise."""
    return lambda: EfficientDM(EfficientDM.Options(**off))


def linear_walks(network, images, seed=3):
    """Walks of a sampler that takes a tenth of the prediction away at each call."""
    sample = torch.randn(images, 4, 6, 6, generator=torch.Generator().manual_seed(seed))
    walks, times = [], torch.arange(CALLS).float()
    for time in times:
        walks.append(sample)
        with torch.no_grad():
            sample = 0.9 * sample - 0.1 * network(sample, timestep=time.expand(images))[0]
    return Trajectory(torch.stack(walks), times, {})


def learned(method, network, bits, recorded, iterations=400):
    """A method's model, and its relative error on walks of other images."""
    network = network.eval().requires_grad_(False)
    graph = trace(network, recorded.sample[0, :2], timestep=recorded.timestep[:1])
    effort = Effort(32, iterations)
    made = method().run(MethodContext(network, graph, recorded, bits, UNIFORM, "paper", 0, effort))
    rows = torch.arange(8)
    points = linear_walks(network, 8, seed=5).pick(
        torch.arange(CALLS).repeat_interleave(8), rows.repeat(CALLS)
    )
    with torch.no_grad():
        target = points.call(network)
        gap = (made.run(points) - target).square().mean() / target.square().mean()
    return made, float(gap)


def codes(model):
    return [branch.parts[0].weight_quantizer.codes for branch in model.module.branches]


def test_lora_beats_rtn_and_scales_alone_and_moves_all_layers_alike():
    network = Branches()
    recorded = linear_walks(network, 16)
    made, errors, shares = {}, {}, {}
    for name, off in (
        ("start", {"finetune": False}),
        ("ours", {}),
        ("scales", {"lora": False}),
        ("same", {"scale_aware": False}),
    ):
        made[name], errors[name] = learned(variant(**off), network, Bits(3, 8), recorded)
        pairs = zip(codes(made[name]), codes(made["start"]), strict=True)
        shares[name] = [float((a != b).float().mean()) for a, b in pairs]
    assert learned(RoundToNearest, network, Bits(3, 8), recorded)[1] >= 5 * errors["ours"]
    assert errors["start"] >= 5 * errors["ours"], "the gain is not the fine-tuning's"
    assert errors["scales"] >= 2 * errors["ours"], "the gain is not LoRA's"
    assert max(shares["ours"]) <= 4 * min(shares["ours"])
    assert max(shares["same"]) >= 8 * min(shares["same"]), "one rate for all layers suits all"


def test_a_range_for_each_call_wins_where_activations_grow(judged):
    network = Stepped()
    rtn, ours, shared = (
        judged(method, network, Bits(8, 4))[1]
        for method in (RoundToNearest, EfficientDM, variant(per_call=False))
    )
    assert rtn >= 5 * ours
    assert shared >= 5 * ours


def test_new_noise_teaches_what_one_recorded_image_does_not():
    network = Branches()
    recorded = linear_walks(network, 1)
    made, ours = learned(variant(batch=8), network, Bits(3, 8), recorded)
    assert made.notes["distillation"]["walks"] == "new"
    again, theirs = learned(variant(batch=8, data_free=False), network, Bits(3, 8), recorded)
    assert again.notes["distillation"]["walks"] == "recorded"
    assert theirs >= 1.2 * ours


def test_a_sampler_that_clips_is_walked_as_recorded(pixel):
    made = EfficientDM().run(pixel.context(Bits(4, 8), "paper", Effort(8, 4)))
    assert made.notes["distillation"]["walks"].startswith("recorded: new walks need")


def test_what_is_added_after_quantization_is_off_the_grid():
    weight, quantizer = torch.randn(64, 64), WeightQuantizer(4)
    quantizer.find_params(weight, minmax_range, symmetric=False)
    quantizer.learn(weight, rounding=Rounding.LORA, rank=4)
    with torch.no_grad():
        quantizer.lora_up.normal_(std=0.2)
        change = quantizer.lora_up @ quantizer.lora_down
        steps = quantizer(weight) / quantizer.scale
        before = WeightQuantizer(4)
        before.set_params(quantizer.params)
        added = (before(weight) + change) / quantizer.scale
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert float(((added - added.round()).abs() > 1e-4).float().mean()) > 0.99


def test_release_copies_one_range_and_learns_zero_points(pixel):
    for name, recipe in RECIPES.items():
        context = pixel.context(Bits(4, 4), name, Effort(16, 0))
        model = EfficientDM().run(context)
        banks = [p.static.scale for x in model.layers.values() for p in x.parts]
        assert {tuple(bank.shape) for bank in banks} == {(CALLS,)}
        assert all(bool((b == b[0]).all()) for b in banks) == recipe.copied
        schedule = EfficientDM().schedule(context.wrap(), Effort(16, 100), CALLS, recipe)
        assert ("act_zero" in schedule.groups) == (name == "release")


def test_lengths_and_rates_are_the_papers_where_there_is_room(pixel):
    context = pixel.context(Bits(4, 4), "paper", Effort(16, 20_000))
    model, recipe = context.wrap(), RECIPES["paper"]
    model.set_weight_ranges(minmax_range)
    method, paper = EfficientDM(), hyper_parameters.EFFICIENT_DM
    schedule = method.schedule(model, context.effort, CALLS, recipe)
    assert (schedule.updates, schedule.rank, schedule.reduction) == (16_000, 32, "sum")
    assert schedule.groups == paper.groups
    short = method.schedule(model, Effort(16, 100), CALLS, recipe)
    assert short.updates == 80
    assert short.groups["lora"] == Group(0.02, Decay.LINEAR, relative=True)
    assert method.schedule(model, Effort(16, 0), CALLS, recipe).updates == 0
    alone = variant(lora=False)().schedule(model, context.effort, CALLS, recipe)
    assert set(alone.groups) == {"weight_scale", "act_scale"}


def test_its_layers_are_those_of_its_successor():
    assert replace(published.EFFICIENT_DM, source="") == replace(published.MPQ_DM, source="")


@pytest.mark.slow
def test_conformance():
    results = check("efficient_dm", effort=Effort(samples=8, iterations=4))
    assert {(r.name, r.model): r.detail for r in results if not r.passed} == {}
