"""Planted structures: each idea of the core wins where its structure is, on packed integers.

Every case is a small network, traced, wrapped, packed and run. Switching the idea off must lose the
stated factor; where its structure is absent the idea must not cost anything.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from quantarena.methods.core.affine import QuantParams, affine_params
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.calibrate.bounds import input_bounds
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.calibrate.plan import FLOAT_WEIGHTS
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.scaling.channel_scaling import dilate
from quantarena.methods.techniques.scaling.norm_fold import Affine, fold_norm

CALLS, ROWS = 4, 8


class Skip(nn.Module):
    """A 1x1 shortcut over two halves, the second ``gap`` times larger with smaller weights."""

    def __init__(self, gap):
        super().__init__()
        self.deep, self.early = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.shortcut, self.last = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 4, 1)
        self.gap = gap
        with torch.no_grad():
            self.shortcut.weight[:, 16:] /= gap

    def forward(self, sample, timestep=None, return_dict=True):
        x = torch.cat([self.deep(sample), self.gap * self.early(sample)], 1)
        return (self.last(self.shortcut(x)),)


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


class Chain(nn.Module):
    """A LayerNorm and two linears, from ``width`` channels to 8, with a gain on some channels."""

    def __init__(self, width=64, gain=None):
        super().__init__()
        self.first, self.norm = nn.Linear(4, width), nn.LayerNorm(width)
        self.narrow, self.last = nn.Linear(width, 8), nn.Linear(8, 4)
        if gain is not None:
            with torch.no_grad():
                self.norm.weight.mul_(gain)
                self.norm.bias.uniform_(-1, 1).mul_(gain)
                self.narrow.weight.div_(gain)

    def forward(self, sample, timestep=None, return_dict=True):
        x = self.narrow(self.norm(self.first(sample.flatten(2).mT)))
        return (self.last(torch.tanh(x)).mT.reshape(sample.shape),)


@dataclass
class Case:
    network: nn.Module
    points: CalibrationSet
    middle: str
    bits: Bits

    def model(self, **options):
        """The layer under test at the case's bits, all others in floating point."""
        start = self.points.rows(slice(0, 2))
        graph = trace(self.network, start.sample, timestep=start.timestep)
        widths = dict.fromkeys(graph.layers, Bits(16, 16)) | {self.middle: self.bits}
        return wrap(self.network, graph, widths, **options)

    def error(self, model, *, ready=False, plan=FLOAT_WEIGHTS):
        """Relative error of the packed network's output."""
        if not ready:
            model.set_weight_ranges(minmax_range)
            calibrate_activations(model, self.points, minmax_range, plan)
        model.freeze()
        packed = pack(model)
        parity(model, packed, self.points)
        with torch.no_grad(), packed.clock.at(self.points.step):
            y = self.points.call(packed.module)
            target = self.points.call(self.network)
        return float((y - target).square().mean() / target.square().mean())


def case(network, middle, bits, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(CALLS * ROWS, 4, 6, 6, generator=generator)
    step = torch.arange(CALLS).repeat_interleave(ROWS)
    return Case(network.eval(), CalibrationSet(sample, step.float(), step), middle, bits)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("gap", "factor"), [(200.0, 10.0), (1.0, 0.8)])
def test_split_shortcut(gap, factor):
    ground = case(Skip(gap), "shortcut", Bits(4, 4))
    whole, split = ground.error(ground.model()), ground.error(ground.model(splits=True))
    assert split * factor <= whole


@pytest.mark.parametrize(("gap", "factor"), [(50.0, 10.0), (1.0, 0.8)])
def test_bank_by_sampler_call(gap, factor):
    ground = case(Stepped(gap), "middle", Bits(8, 4))
    shared = ground.error(ground.model())
    banked = ground.error(ground.model(), plan=replace(FLOAT_WEIGHTS, per_call=True))
    assert banked * factor <= shared


def kurtosis(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    return centred.pow(4).mean(1) / centred.square().mean(1).square()


@pytest.mark.parametrize(("heavy", "factor"), [(True, 1.25), (False, 0.0)])
def test_wider_codes_for_heavy_tailed_rows(heavy, factor):
    network = Chain(64)
    if heavy:  # two of eight rows have an outlier each, so their steps are coarse
        with torch.no_grad():
            network.narrow.weight[[2, 5], 7] = 0.9
    ground = case(network, "narrow", Bits(3, 8))
    uniform = ground.error(ground.model())
    model = ground.model()
    order = kurtosis(network.narrow.weight.detach()).argsort(descending=True)
    widths = torch.full((8,), 3)
    widths[order[:2]], widths[order[-2:]] = 4, 2
    assert float(widths.float().mean()) == 3.0
    model.layers["narrow"].parts[0].weight_quantizer.set_bit_map(widths)
    assert ground.error(model) * factor <= uniform
    assert set(order[:2].tolist()) == {2, 5} or not heavy


def test_dilation_from_wide_to_narrow():
    network = Chain(256)
    with torch.no_grad():  # most input channels have small weights: their codes are mostly zero
        network.narrow.weight[:, 16:] *= 0.15
    ground = case(network, "narrow", Bits(3, 8))
    plain = ground.error(ground.model())
    model = ground.model()
    layer = model.layers["narrow"]
    stretched = dilate(layer.weight)
    layer.scale_input(stretched.factor)
    assert float(stretched.factor.mean()) > 2
    assert ground.error(model) * 2 <= plain


def test_channel_imbalance_is_folded_into_the_norm():
    ground = case(Chain(64, torch.logspace(-1.5, 1.5, 64)), "narrow", Bits(8, 4))
    naive = ground.error(ground.model())
    model = ground.model()
    bounds = input_bounds(model, ground.points)["narrow"]
    channelwise = affine_params(bounds.low, bounds.high, 4, False)
    norm, layer = model.module.norm, model.layers["narrow"]
    folded = fold_norm(
        Affine(norm.weight, norm.bias),
        [Affine(layer.weight, layer.bias)],
        channelwise.scale,
        channelwise.zero_point,
    )
    norm.weight.data, norm.bias.data = folded.producer.weight, folded.producer.bias
    layer.weight.data, layer.bias.data = folded.consumers[0].weight, folded.consumers[0].bias
    model.set_weight_ranges(minmax_range)
    layer.parts[0].static.set_params(QuantParams(folded.scale, folded.zero_point, 4))
    assert ground.error(model, ready=True) * 5 <= naive
