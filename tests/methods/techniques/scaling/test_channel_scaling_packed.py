"""Each reparametrisation keeps the function in floating point, and then packs: integer = fake."""

import copy

import pytest
import torch
from torch import nn

from quantarena.methods.core.affine import QuantParams, affine_params, quantize
from quantarena.methods.core.bits import AttentionBits, Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.attention_mode import IntegerOracle
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import place, wrap
from quantarena.methods.core.model.time_table import ScheduledTable
from quantarena.methods.core.packed.lowering.lower import pack_layer
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.parity import PARITY_LIMIT, parity
from quantarena.methods.core.quantizers.log import LogParams, log_dequantize
from quantarena.methods.core.record.steps import AllCalls
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.calibrate.plan import CalibrationPlan
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.scaling.channel_scaling import dilate, smooth
from quantarena.methods.techniques.scaling.norm_fold import Affine, fold_norm

BOTH = [(torch.float32, 1e-5), (torch.float64, 1e-10)]
WIDTHS = [Bits(4, 8), Bits(8, 8), Bits(3, 4)]


def apart(one, other):
    return float((one - other).abs().max() / other.abs().max())


def uneven(kind, name):
    """A layer and an input whose channels differ in size; from wide to narrow for dilation."""
    outputs = 2 if name == "dilation" else 20
    if kind == "linear":
        return nn.Linear(16, outputs), torch.randn(4, 7, 16) * torch.logspace(-1, 1, 16)
    module = nn.Conv2d(16, outputs, 3, padding=1)
    return module, torch.randn(3, 16, 6, 6) * torch.logspace(-1, 1, 16).view(-1, 1, 1)


def packed_gap(layer, x, bits):
    """Ranges, frozen codes, and how far packed is from fake."""
    layer.set_weight_ranges(minmax_range, symmetric=False)
    part = layer.only_part
    part.act_quantizer.set_params(minmax_range(layer.scaled(x), bits.act))
    layer.freeze()
    with torch.no_grad():
        return apart(pack_layer(layer)(x), layer(x))


def factors(name, module, x):
    weight = module.weight.detach()
    if name == "dilation":
        return dilate(weight).factor
    channels = x.movedim(1 if weight.dim() == 4 else -1, 0).flatten(1)
    return smooth(channels.abs().amax(1), weight).factor


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", ["smoothing", "dilation"])
@pytest.mark.parametrize(("dtype", "bound"), BOTH)
def test_scaled_inputs_keep_the_function(kind, name, dtype, bound):
    module, x = uneven(kind, name)
    module, x = module.to(dtype), x.to(dtype)
    layer = QuantLayer(module, Bits(4, 8))
    layer.use_weight_quantizer = layer.use_act_quantizer = False
    layer.scale_input(factors(name, module, x))
    with torch.no_grad():
        assert apart(layer(x), module(x)) <= bound


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", ["smoothing", "dilation"])
@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_scaled_inputs_pack(kind, name, bits):
    module, x = uneven(kind, name)
    layer = QuantLayer(module, bits)
    factor = factors(name, module, x)
    assert factor.max() > 1.01
    layer.scale_input(factor)
    assert packed_gap(layer, x, bits) <= PARITY_LIMIT


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_a_factor_folded_into_the_producer_packs(bits):
    first, second = nn.Linear(8, 16), nn.Linear(16, 6)
    h = torch.randn(5, 8)
    with torch.no_grad():
        x, want = first(h), second(first(h))
        scaled = smooth(x.abs().amax(0), second.weight.detach())
        first.weight.div_(scaled.factor[:, None])
        first.bias.div_(scaled.factor)
        second.weight.copy_(scaled.weights[0])
        assert apart(second(first(h)), want) <= 1e-5
        layer = QuantLayer(second, bits)
        assert packed_gap(layer, first(h), bits) <= PARITY_LIMIT
    assert layer.input_factor is None


class Normed(nn.Module):
    """A LayerNorm whose output two linears read."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.norm = nn.LayerNorm(16, dtype=dtype)
        self.one, self.two = (nn.Linear(16, n, dtype=dtype) for n in (12, 9))
        with torch.no_grad():
            self.norm.weight.copy_(torch.logspace(-1, 1, 16, dtype=dtype))
            self.norm.bias.copy_(torch.randn(16, dtype=dtype))

    def forward(self, h):
        x = self.norm(h)
        return torch.cat([self.one(x), self.two(x)], -1)


def folded(network, h, bits):
    """The network changed in place; the channel-wise quantizer that was, and what is left of it."""
    with torch.no_grad():
        x = network.norm(h).flatten(0, -2)
        low, high = x.aminmax(dim=0)
        params = affine_params(low, high, bits, symmetric=False)
        fold = fold_norm(
            Affine(network.norm.weight, network.norm.bias),
            [Affine(layer.weight, layer.bias) for layer in (network.one, network.two)],
            params.scale.to(x.dtype),
            params.zero_point.to(x.dtype),
        )
        affine = zip(
            (network.norm, network.one, network.two), (fold.producer, *fold.consumers), strict=True
        )
        for module, (weight, bias) in affine:
            module.weight.copy_(weight)
            module.bias.copy_(bias)
    return params, QuantParams(fold.scale.float(), fold.zero_point.float(), bits)


@pytest.mark.parametrize(("dtype", "bound"), BOTH)
def test_a_folded_norm_keeps_the_function(dtype, bound):
    network, h = Normed(dtype), torch.randn(6, 5, 16, dtype=dtype)
    with torch.no_grad():
        want = network(h)
        folded(network, h, 8)
        assert apart(network(h), want) <= bound


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_a_folded_norm_packs(bits):
    network, h = Normed(), torch.randn(6, 5, 16)
    with torch.no_grad():
        before = network.norm(h)
    channelwise, layerwise = folded(network, h, bits.act)
    with torch.no_grad():
        after = network.norm(h)
    # the codes of one range are those of sixteen; a tie may round the other way
    moved = (quantize(before, channelwise) - quantize(after, layerwise)).abs()
    assert moved.max() <= 1
    assert (moved > 0).float().mean() <= 0.01
    model = wrap(network, trace(network, h), dict.fromkeys(("one", "two"), bits))
    model.set_weight_ranges(minmax_range)
    for layer in model.layers.values():
        layer.only_part.act_quantizer.set_params(layerwise)
    model.freeze()
    packed = pack(model)
    with torch.no_grad():
        assert apart(packed.module(h), model.module(h)) <= PARITY_LIMIT


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_halves_of_octaves_are_octaves_and_a_parity(bits):
    """log-sqrt2 as log2: ``2 ** (-q / 2) = 2 ** -ceil(q / 2) * sqrt(2) ** (q odd)``."""
    fine = LogParams(torch.tensor(0.7), bits, per_octave=2)
    coarse = LogParams(torch.tensor(0.7), 8)
    codes = torch.arange(fine.top + 1, dtype=torch.uint8)
    octaves = log_dequantize((codes + 1) // 2, coarse)
    parity_scale = torch.where(codes % 2 == 1, 2.0**0.5, 1.0)
    assert apart(octaves * parity_scale, log_dequantize(codes, fine)) <= 1e-6
    exact = 0.7 * torch.exp2(-codes.double() / 2)
    assert ((log_dequantize(codes, fine).double() - exact) / exact).abs().max() <= 1e-6


@pytest.mark.parametrize("per_octave", [1, 2])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_logarithmic_attention_in_integers(bits, per_octave, transformer):
    """Shifts and one accumulator, or two, give what the fake product gives."""
    info = next(iter(transformer.graph.attention.values()))
    quant = QuantAttention(info, AttentionBits(8, 8, 8, bits), CallClock())
    quant.use_log(per_octave=per_octave)
    tensors = {n: torch.randn(2, info.heads, 9, 6) for n in ("query", "key", "value")}
    for name, x in tensors.items():
        quant.static(name).set_params(minmax_range(x, 8))
    fake = quant.attend(*tensors.values())
    quant.mode = IntegerOracle()
    assert apart(quant.attend(*tensors.values()), fake) <= PARITY_LIMIT


@pytest.mark.parametrize(("dtype", "bound"), BOTH)
def test_a_time_table_keeps_the_function(pixel, dtype, bound):

    network = copy.deepcopy(pixel.model).to(dtype)
    points = pixel.heldout
    values = embedding_table(network, pixel.trajectory.timestep, dtype)
    with torch.no_grad():
        want = network(points.sample.to(dtype), points.timestep).sample
        clock = CallClock()
        place(network, "time_embedding", ScheduledTable(values, clock))
        with clock.at(points.step):
            assert apart(network(points.sample.to(dtype), points.timestep).sample, want) <= bound


@torch.no_grad()
def embedding_table(network, timesteps, dtype=torch.float32):
    """The time embedding at every sampler call, (S, C)."""

    def embed(timestep):
        return network.time_embedding(network.time_proj(timestep).to(dtype))

    return torch.cat([embed(timestep.reshape(1)) for timestep in timesteps])


@pytest.mark.parametrize("per_call", [False, True])
def test_a_network_with_a_time_table_packs(pixel, per_call):
    bits = dict.fromkeys(pixel.graph.layers, Bits(4, 8))
    model = wrap(pixel.model, pixel.graph, bits, splits=True)
    values = embedding_table(pixel.model, pixel.trajectory.timestep)
    model.tabulate("time_embedding", ScheduledTable(values))
    model.set_weight_ranges(minmax_range)
    points = AllCalls().draw(pixel.trajectory, 0)
    calibrate_activations(model, points, minmax_range, CalibrationPlan(per_call=per_call))
    model.freeze()
    packed = pack(model)
    assert parity(model, packed, pixel.heldout).max_rel <= PARITY_LIMIT
    assert "time_embedding.linear_1" in pixel.graph.layers
    assert not [name for name in packed.layers if name.startswith("time_embedding")]
