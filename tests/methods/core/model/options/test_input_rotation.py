"""Rotated input channels: the function stays, outliers spread, packed and saved forms agree."""

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.options.input_rotation import InputRotation
from quantarena.methods.core.packed.lowering.lower import pack_layer
from quantarena.methods.core.packed.nodes.rebuild import build
from quantarena.methods.core.packed.nodes.rotation import RotationLayer
from quantarena.methods.techniques.ranges.minmax import minmax_range

WIDTHS = [24, 64, 7]


def signs(width):
    return torch.randint(0, 2, (width,)) * 2.0 - 1.0


def layer_of(width, bits, *, scaled, dynamic=True):
    torch.manual_seed(width)
    module, x = nn.Linear(width, 12), torch.randn(3, 5, width)
    layer = QuantLayer(module, bits)
    if scaled:
        layer.scale_input(torch.rand(width) + 0.5)
    layer.rotate_input(signs(width))
    layer.set_weight_ranges(minmax_range, symmetric=False)
    if dynamic:
        layer.only_part.use_dynamic()
    elif layer.only_part.static is not None:
        layer.only_part.static.set_params(minmax_range(layer.scaled(x), bits.act))
    return module, layer, x


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scaled", [False, True])
def test_the_function_stays(width, scaled):
    module, layer, x = layer_of(width, Bits(8, 8), scaled=scaled)
    layer.use_weight_quantizer = layer.use_act_quantizer = False
    assert torch.allclose(layer(x), module(x), atol=1e-5)
    assert [type(option) for option in layer.options] == [InputRotation]


def test_channels_are_balanced_first_and_then_rotated():
    factor, signed, x = torch.rand(24) + 0.5, signs(24), torch.randn(4, 24)
    layer, plain = (QuantLayer(nn.Linear(24, 6), Bits(8, 8)) for _ in range(2))
    layer.scale_input(factor)
    layer.rotate_input(signed)
    plain.rotate_input(signed)
    assert torch.allclose(layer.scaled(x), plain.scaled(x / factor), atol=1e-5)
    assert float(layer.scaled(x).square().sum()) == pytest.approx(
        float((x / factor).square().sum()), rel=1e-5
    )


@pytest.mark.parametrize("bits", [Bits(4, 4), Bits(8, 8), Bits(4, 16)], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_packed_and_rebuilt_forms_compute_the_same(bits, width):
    for dynamic in (True, False) if bits.act < 16 else (False,):
        _, layer, x = layer_of(width, bits, scaled=True, dynamic=dynamic)
        layer.freeze()
        packed = pack_layer(layer)
        assert isinstance(packed, RotationLayer)
        again = build(packed.describe(), {n: t.clone() for n, t in packed.state_dict().items()})
        with torch.no_grad():
            wanted = layer(x)
            for node in (packed, again):
                assert (node(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_outlier_channels_cost_less():
    torch.manual_seed(0)
    module, x = nn.Linear(64, 16), torch.randn(40, 64)
    x[torch.arange(40), torch.randint(64, (40,))] *= 40
    errors = []
    for rotated in (False, True):
        layer = QuantLayer(module, Bits(8, 4))
        if rotated:
            layer.rotate_input(signs(64))
        layer.set_weight_ranges(minmax_range, symmetric=False)
        layer.only_part.use_dynamic()
        errors.append(float((layer(x) - module(x)).square().mean().detach()))
    assert errors[0] >= 5 * errors[1]


def test_a_shared_mean_needs_the_signs():
    x = torch.randn(40, 64) * 0.1 + 1.0
    layers = [QuantLayer(nn.Linear(64, 8), Bits(8, 8)) for _ in range(2)]
    for layer, given in zip(layers, (signs(64), torch.ones(64)), strict=True):
        layer.rotate_input(given)
    largest = [float(layer.scaled(x).abs().amax(-1).mean()) for layer in layers]
    assert 2 * largest[0] <= largest[1]


def test_state_comes_back_and_damage_is_named():
    module, layer, x = layer_of(24, Bits(4, 4), scaled=True)
    layer.freeze()
    state = layer.state()
    other = QuantLayer(module, Bits(4, 4))
    other.load(state)
    assert torch.equal(other(x), layer(x))
    for damaged in (torch.ones(5), torch.zeros(24), torch.full((24,), torch.nan)):
        with pytest.raises(BrokenModel, match="rotated input channels"):
            QuantLayer(module, Bits(4, 4)).load({**state, "in_rotation": damaged})


@pytest.mark.parametrize(
    ("module", "splits", "match"),
    [
        (nn.Conv2d(24, 4, 3, padding=1), (), "a convolution has no rotation"),
        (nn.Conv2d(24, 4, 1), (), "a convolution has no rotation"),
        (nn.Conv1d(24, 4, 3), (), "a convolution has no rotation"),
        (nn.Linear(24, 4), (16, 8), "a layer of 2 parts has no rotation"),
    ],
)
def test_other_layers_are_refused_by_name(module, splits, match):
    layer = QuantLayer(module, Bits(4, 8), splits)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=match):
        layer.rotate_input(torch.ones(24))
    assert torch.equal(layer.weight, before)
    assert not layer.options


def test_what_does_not_go_together_is_refused_and_leaves_the_layer():
    layer = QuantLayer(nn.Linear(24, 4), Bits(4, 8))
    for wrong, match in ((torch.ones(5), "shape"), (torch.full((24,), 2.0), "must be 1 or -1")):
        with pytest.raises(ValueError, match=match):
            layer.rotate_input(wrong)
    layer.scale_input(torch.full((24,), 2.0))
    layer.set_low_rank(torch.randn(2, 24), torch.randn(4, 2))
    weight, kinds = layer.weight.clone(), [type(option) for option in layer.options]
    with pytest.raises(ValueError, match="do not go together"):
        layer.rotate_input(signs(24))
    assert torch.equal(layer.weight, weight)
    assert [type(option) for option in layer.options] == kinds
    rotated = QuantLayer(nn.Linear(24, 4), Bits(4, 8))
    rotated.rotate_input(signs(24))
    with pytest.raises(ValueError, match="rotated already"):
        rotated.rotate_input(signs(24))
    with pytest.raises(ValueError, match="do not go together"):
        rotated.scale_input(torch.ones(24))


def test_the_cost_is_counted_and_no_byte_is_added_to_a_scaled_layer():
    option = InputRotation(torch.ones(192))
    assert option.float_macs(1e6, 10.0) == 10 * 192 * (6 + 3 + 1)
    nodes = []
    for rotate in (False, True):
        layer = QuantLayer(nn.Linear(24, 8), Bits(4, 8))
        layer.scale_input(torch.rand(24) + 0.5)
        if rotate:
            layer.rotate_input(signs(24))
        layer.set_weight_ranges(minmax_range, symmetric=False)
        layer.only_part.use_dynamic()
        layer.freeze()
        nodes.append(pack_layer(layer))
    plain, turned = (sum(t.numel() for t in node.buffers()) for node in nodes)
    assert plain == turned


def test_a_packed_rotation_of_another_width_is_refused():
    _, layer, _ = layer_of(24, Bits(4, 8), scaled=False)
    layer.freeze()
    node = pack_layer(layer)
    with pytest.raises(ValueError, match="do not fit"):
        RotationLayer(node.inner, torch.ones(8))
