import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.packed.lowering.lower import pack_layer
from quantarena.methods.core.packed.nodes.rebuild import leaf_nodes
from quantarena.methods.core.quantizers.weight import WeightQuantizer
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range


def ranged(module, bits, splits=(), x=None, symmetric=False):
    """A layer with min-max ranges from its own weight and the input ``x``."""
    layer = QuantLayer(module, bits, splits)
    layer.set_weight_ranges(minmax_range, symmetric=symmetric)
    for part in layer.parts:
        if part.act_quantizer is not None:
            part.act_quantizer.set_params(minmax_range(layer.part_input(part, x), bits.act))
    return layer


def skip(gap):
    """A 1x1 shortcut over a concatenation whose second half is ``gap`` times larger."""
    conv = nn.Conv2d(24, 8, 1)
    with torch.no_grad():
        conv.weight[:, 16:] /= gap
    x = torch.cat([torch.randn(4, 16, 8, 8), gap * torch.randn(4, 8, 8, 8)], 1)
    return conv, x


def error(layer, conv, x):
    with torch.no_grad():
        target = conv(x)
        return float((layer(x) - target).square().mean() / target.square().mean())


def test_split_layer_is_the_sum_of_two_half_convolutions():
    conv, x = skip(200)
    layer = ranged(conv, Bits(4, 8), (16, 8), x)
    first, second = layer.parts
    expected = F.conv2d(
        first.act_quantizer(x[:, :16]), first.weight_quantizer(conv.weight[:, :16]), conv.bias
    ) + F.conv2d(second.act_quantizer(x[:, 16:]), second.weight_quantizer(conv.weight[:, 16:]))
    assert (layer(x) - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_split_layer_has_two_quantizers_of_each_kind():
    conv, x = skip(200)
    first, second = ranged(conv, Bits(4, 8), (16, 8), x).parts
    assert first.weight_quantizer.scale.shape == second.weight_quantizer.scale.shape == (8, 1, 1, 1)
    assert first.weight_quantizer.scale.mean() > 50 * second.weight_quantizer.scale.mean()
    assert second.act_quantizer.scale > 50 * first.act_quantizer.scale
    assert (first.start, first.stop, second.start, second.stop) == (0, 16, 16, 24)


@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 8), Bits(4, 4)])
def test_split_pays_where_the_halves_differ_by_200(bits):
    conv, x = skip(200)
    whole = error(ranged(conv, bits, (), x), conv, x)
    split = error(ranged(conv, bits, (16, 8), x), conv, x)
    assert whole >= 10 * split


def test_split_costs_nothing_where_the_halves_agree():
    conv, x = skip(1)
    whole = error(ranged(conv, Bits(4, 8), (), x), conv, x)
    split = error(ranged(conv, Bits(4, 8), (16, 8), x), conv, x)
    assert split <= 1.05 * whole


@pytest.mark.parametrize("splits", [(), (16, 8)])
def test_quantizers_off_is_the_original(splits):
    conv, x = skip(3)
    layer = ranged(conv, Bits(4, 4), splits, x)
    layer.use_weight_quantizer = layer.use_act_quantizer = False
    assert (layer(x) - conv(x)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(6, 4, 3, stride=2, padding=1),
        nn.Conv2d(6, 4, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(6, 6, 3, padding=1, groups=3),
        nn.Linear(6, 5),
        nn.Linear(6, 5, bias=False),
    ],
    ids=["stride", "dilation", "groups", "linear", "no bias"],
)
def test_eight_bits_follow_the_module(module):
    x = torch.randn(2, 6, 9, 9) if isinstance(module, nn.Conv2d) else torch.randn(2, 3, 6)
    layer = ranged(module, Bits(8, 8), (), x)
    with torch.no_grad():
        target = module(x)
        assert layer(x).shape == target.shape
        assert (layer(x) - target).abs().max() <= 0.03 * target.abs().max()


def test_layer_moves_with_its_network():
    network = nn.Sequential(QuantLayer(nn.Linear(3, 3), Bits(4, 8))).to(torch.float64)
    assert network[0].weight.dtype == network[0].bias.dtype == torch.float64


def test_unsupported_padding_is_refused():
    with pytest.raises(Unsupported, match="zero padding"):
        QuantLayer(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), Bits(8, 8))
    with pytest.raises(Unsupported, match="zero padding"):
        QuantLayer(nn.Conv2d(3, 3, 3, padding="same"), Bits(8, 8))


def test_wrong_splits_are_refused():
    with pytest.raises(ValueError, match="do not sum"):
        QuantLayer(nn.Conv2d(24, 8, 1), Bits(8, 8), (16, 16))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), bits=st.integers(1, 8), symmetric=st.booleans())
def test_frozen_codes_reproduce_nearest_rounding(seed, bits, symmetric):
    torch.manual_seed(seed)
    layer = ranged(nn.Linear(7, 3), Bits(bits, 8), (), torch.randn(4, 7), symmetric)
    x = torch.randn(4, 7)
    before = layer(x)
    layer.freeze()
    quantizer = layer.only_part.weight_quantizer
    assert quantizer.codes.dtype == torch.uint8
    assert quantizer.codes.max() <= 2**bits - 1
    assert torch.equal(layer(x), before)


def test_soft_rounding_starts_at_the_weight_and_hardens_to_nearest():
    weight = torch.randn(4, 9)
    quantizer = WeightQuantizer(4)
    quantizer.set_params(minmax_range(weight, 4, axis=0))
    quantizer.soften(weight)
    codes = weight / quantizer.scale + quantizer.zero_point
    inside = (codes >= 0) & (codes <= 15)
    assert inside.float().mean() > 0.8
    assert ((quantizer(weight) - weight).abs() <= 2e-4 * quantizer.scale + 1e-6)[inside].all()
    soft = quantizer.soft.rounding()
    assert soft.min() >= 0
    assert soft.max() <= 1
    quantizer.freeze(weight)
    nearest = WeightQuantizer(4)
    nearest.set_params(minmax_range(weight, 4, axis=0))
    nearest.freeze(weight)
    assert torch.equal(quantizer.codes, nearest.codes)


def test_a_new_range_forgets_codes_and_rounding():
    weight = torch.randn(4, 9)
    quantizer = WeightQuantizer(4)
    quantizer.set_params(minmax_range(weight, 4, axis=0))
    quantizer.freeze(weight)
    quantizer.set_params(mse_range(weight, 4, axis=0))
    assert quantizer.codes is None


def test_fake_weight_is_what_the_packed_codes_mean():
    conv, x = skip(5)
    layer = ranged(conv, Bits(3, 5), (16, 8), x)
    layer.freeze()
    packed = [leaf.integer_layer() for leaf in leaf_nodes(pack_layer(layer))]
    for part, integer in zip(layer.parts, packed, strict=True):
        shape = (-1, 1, 1, 1)
        meaning = (
            integer.weight_codes.float() - integer.weight_zero.float().reshape(shape)
        ) * integer.weight_scale.reshape(shape)
        assert torch.equal(meaning, part.weight_quantizer(layer.part_weight(part)))
        assert (integer.weight_bits, integer.act_bits) == (3, 5)
    assert packed[0].bias is not None
    assert packed[1].bias is None


@pytest.mark.parametrize("bits", [Bits(16, 8), Bits(4, 16)])
def test_half_quantized_layers_run(bits):
    x = torch.randn(4, 7)
    module = nn.Linear(7, 3)
    layer = ranged(module, bits, (), x)
    layer.freeze()
    assert not torch.equal(layer(x), module(x))


def test_quantized_inputs_alone_do_not_pack():
    layer = ranged(nn.Linear(7, 3), Bits(16, 8), (), torch.randn(4, 7))
    layer.freeze()
    with pytest.raises(Unsupported, match="float weight"):
        pack_layer(layer)


def test_unfrozen_layer_does_not_pack():
    layer = ranged(nn.Linear(7, 3), Bits(4, 8), (), torch.randn(4, 7))
    with pytest.raises(ValueError, match="frozen"):
        pack_layer(layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 8)])
def test_a_layer_of_another_dtype_has_the_codes_of_its_packed_form(dtype, bits):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 32, generator=generator).to(dtype)
    layer = ranged(nn.Linear(32, 16).to(dtype), bits, x=x)
    layer.freeze()
    with torch.no_grad():
        fake, packed = layer(x), pack_layer(layer)(x.float())
    assert fake.dtype is dtype
    assert torch.allclose(fake.float(), packed.to(dtype).float(), rtol=1e-2, atol=1e-5)
    part = layer.only_part
    values = part.act_quantizer(x) @ part.weight_quantizer(layer.weight).T + layer.bias.float()
    assert (packed - values).abs().max() <= 1e-5 * values.abs().max()
