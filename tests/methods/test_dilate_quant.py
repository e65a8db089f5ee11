"""DilateQuant: what dilation leaves as it was, banks in mixed batches, where each idea wins."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.dilate_quant import DilateQuant, dilate_layers
from quantarena.methods.info import Effort
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.techniques.learn.reconstruct import reconstruct
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.testing.conformance import check

CALLS = 4


class WideToNarrow(nn.Module):
    """Most of 256 channels have small weights into 8 outputs: their codes are mostly zero."""

    def __init__(self, share):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 256), nn.LayerNorm(256)
        self.narrow, self.last = nn.Linear(256, 8), nn.Linear(8, 4)
        with torch.no_grad():
            self.narrow.weight[:, 16:] *= share

    def forward(self, sample, timestep=None, return_dict=True):
        x = self.narrow(self.norm(self.first(sample.flatten(2).mT)))
        return (self.last(torch.tanh(x)).mT.reshape(sample.shape),)


class Stepped(nn.Module):
    """Activations ``gap`` times larger at the last sampler call than at the first."""

    def __init__(self, gap):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.gap = gap

    def forward(self, sample, timestep=None, return_dict=True):
        gain = self.gap ** (timestep / (CALLS - 1)).reshape(-1, 1, 1)
        x = torch.tanh(self.first(sample.flatten(2).mT)) * gain
        return (self.last(torch.tanh(self.middle(x) / gain)).mT.reshape(sample.shape),)


def variant(**off):
    """DilateQuant with some of its ideas set otherwise."""
    return lambda: DilateQuant(DilateQuant.Options(**off))


def test_dilation_beats_rtn_from_wide_to_narrow(judged):
    network = WideToNarrow(0.15)
    rtn = judged(RoundToNearest, network, Bits(3, 8))[1]
    dilated = judged(DilateQuant, network, Bits(3, 8))[1]
    plain = judged(variant(dilation=False), network, Bits(3, 8))[1]
    assert rtn >= 2 * dilated
    assert plain >= 2 * dilated, "the gain is not dilation's"


def test_ranges_by_step_beat_rtn_where_activations_grow(judged):
    network = Stepped(50.0)
    rtn = judged(RoundToNearest, network, Bits(8, 4))[1]
    banked = judged(DilateQuant, network, Bits(8, 4))[1]
    shared = judged(variant(per_call=False), network, Bits(8, 4))[1]
    assert rtn >= 5 * banked
    assert shared >= 5 * banked, "the gain is not the bank's"


def test_distillation_beats_rtn_and_needs_its_iterations(pixel):
    def judged(method, iterations):
        made = method().run(pixel.context(Bits(3, 8), "paper", Effort(24, iterations)))
        with torch.no_grad():
            target = pixel.heldout.call(pixel.model)
            return float((made.run(pixel.heldout) - target).square().mean())

    trained = judged(DilateQuant, 160)
    assert judged(RoundToNearest, 0) >= 1.4 * trained
    assert judged(variant(distillation=False), 160) >= 1.4 * trained


def test_dilation_keeps_function_ranges_and_extremes(probe):
    context = probe.context(Bits(4, 8), "paper", Effort(16, 0))
    plain, model = context.wrap(), context.wrap()
    notes = dilate_layers(model)
    assert set(notes) == set(model.layers)
    with torch.no_grad(), model.using(weights=False, acts=False):
        target = probe.heldout.call(probe.model)
        gap = (model.run(probe.heldout) - target).abs().max() / target.abs().max()
    assert float(gap) <= 1e-5
    plain.set_weight_ranges(minmax_range)
    model.set_weight_ranges(minmax_range)
    stretched = 0
    for name, layer in model.layers.items():
        before, after = plain.layers[name].weight.flatten(1), layer.weight.flatten(1)
        for old, new in zip(before.aminmax(dim=1), after.aminmax(dim=1), strict=True):
            assert torch.allclose(old, new, rtol=3e-7, atol=0.0)
        scales = [m.layers[name].parts[0].weight_quantizer.scale for m in (plain, model)]
        assert torch.allclose(*scales, rtol=1e-6, atol=0.0), "the weight scale moved"
        factor = layer.input_factor.reciprocal()
        assert float(factor.min()) >= 1 - 1e-6
        stretched += int((factor > 1.01).sum())
        at_one = float((factor < 1 + 1e-6).float().mean())
        assert at_one >= notes[name]["fixed"] - 1e-4, "a channel that holds an extreme was scaled"
        assert notes[name]["mean_factor"] == pytest.approx(float(factor.mean()), abs=1e-3)
    assert stretched > 0


def test_dilation_is_as_large_as_rows_allow(probe):
    model = probe.context(Bits(4, 8), "paper", Effort(16, 0)).wrap()
    low_high = {n: layer.weight.flatten(1).aminmax(dim=1) for n, layer in model.layers.items()}
    dilate_layers(model)
    for name, layer in model.layers.items():
        low, high = (bound[:, None] * 1.0005 for bound in low_high[name])
        weight, factor = (
            layer.weight.flatten(2) if layer.is_conv else layer.weight,
            layer.input_factor,
        )
        for channel in (factor < 0.999).nonzero().flatten().tolist():
            column = weight[:, channel].reshape(len(weight), -1) * 1.001
            assert bool(((column > high.clamp(min=0)) | (column < low.clamp(max=0))).any()), name


def bank(calls=4):
    quantizer = ActQuantizer(4, CallClock())
    quantizer.set_bank(torch.linspace(0.1, 0.4, calls), torch.arange(calls).float() + 5)
    return quantizer


def test_a_batch_of_mixed_steps_is_its_samples_one_by_one():
    quantizer, x = bank(), torch.randn(6, 5, 3)
    steps = torch.tensor([3, 0, 1, 1, 2, 0])
    with quantizer.clock.at(steps):
        together = quantizer(x)
    for row, step in enumerate(steps.tolist()):
        with quantizer.clock.at(step):
            assert torch.equal(quantizer(x[row : row + 1])[0], together[row])


def test_only_ranges_of_the_batchs_steps_learn():
    quantizer = bank()
    quantizer.learn(scale=True, zero_point=True)
    with quantizer.clock.at(torch.tensor([0, 2, 2])):
        (quantizer(torch.randn(3, 50)) ** 2).sum().backward()
    for parameter in (quantizer.scale, quantizer.zero_point):
        assert parameter.grad[[1, 3]].tolist() == [0, 0]
        assert bool((parameter.grad[[0, 2]] != 0).any())


def test_distillation_of_one_block_leaves_the_others(pixel):
    context = pixel.context(Bits(4, 8), "paper", Effort(16, 8))
    model = DilateQuant().quantize(pixel.context(Bits(4, 8), "paper", Effort(16, 0)))
    points = pixel.heldout
    block = context.blocks(model, points)[3]
    kept = {name: layer.parts[0].static.scale.clone() for name, layer in model.layers.items()}
    reconstruct(model, [block], points, DilateQuant().schedule(40), acts=True, seed=0)
    for name, layer in model.layers.items():
        moved = not torch.equal(layer.parts[0].static.scale, kept[name])
        frozen = layer.parts[0].weight_quantizer.codes is not None
        assert moved == frozen == (name in block.layers), name


def test_schedule_has_the_papers_length_and_learns_everything_at_once():
    schedule = DilateQuant().schedule(20_000)
    assert schedule.iterations == 5_000
    assert set(schedule.groups) == {"weight", "weight_scale", "act_scale", "act_zero"}
    assert (schedule.norm, schedule.layers, schedule.mix) == (2.0, 0.0, 0.0)


def test_published_policy_has_ranges_by_call_and_head(transformer):
    context = transformer.context(Bits(4, 4), "paper", Effort(16, 0))
    context = replace(context, policy=DilateQuant.published)
    model = DilateQuant().run(context)
    assert model.attention
    for products in model.attention.values():
        assert products.static("query").scale.shape == (4, products.info.heads)
    assert all(layer.bits == Bits(4, 4) for layer in model.layers.values())


def test_more_calls_than_points_are_refused(pixel):
    with pytest.raises(Unsupported, match="4 calls, the preset allows 3"):
        DilateQuant().run(pixel.context(Bits(4, 4), "paper", Effort(3, 0)))


@pytest.mark.slow
def test_conformance():
    results = check("dilate_quant", effort=Effort(samples=8, iterations=4))
    assert {(r.name, r.model): r.detail for r in results if not r.passed} == {}
