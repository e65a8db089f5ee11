"""What a layer may have around its quantizers; each leaves the float function as it is."""

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import FP_WIDTH, Bits
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.options.input_scale import InputScale
from quantarena.methods.core.model.options.low_rank import LowRankBranch
from quantarena.methods.techniques.ranges.minmax import minmax_range

KINDS = {
    "linear": (lambda: nn.Linear(24, 8), (4, 6, 24)),
    "conv1d": (lambda: nn.Conv1d(24, 8, 3, padding=1, stride=2), (4, 24, 9)),
    "conv2d": (lambda: nn.Conv2d(24, 8, 3, padding=1), (4, 24, 7, 5)),
}


def plain(layer, x):
    layer.use_weight_quantizer = layer.use_act_quantizer = False
    y = layer(x)
    layer.use_weight_quantizer = layer.use_act_quantizer = True
    return y


def ranged(layer, x):
    layer.set_weight_ranges(minmax_range, symmetric=False)
    for part in layer.parts:
        if part.static is not None:
            piece = layer.part_input(part, layer.scaled(x))
            part.static.set_params(minmax_range(piece, part.static.bits))
    return layer


def error(layer, module, x):
    with torch.no_grad():
        return float((layer(x) - module(x)).square().mean() / module(x).square().mean())


@pytest.fixture(params=list(KINDS))
def case(request):
    torch.manual_seed(0)
    build, shape = KINDS[request.param]
    return build(), torch.randn(shape)


def test_input_multiplier_keeps_the_function(case):
    module, x = case
    layer = QuantLayer(module, Bits(4, 8), (16, 8))
    layer.scale_input(torch.rand(24) * 4 + 0.1)
    layer.scale_input(torch.rand(24) + 0.5)
    torch.testing.assert_close(plain(layer, x), module(x), rtol=0, atol=1e-5)


def test_input_multiplier_pays_where_channels_differ(case):
    module, x = case
    axis = -1 if isinstance(module, nn.Linear) else 1
    gain = torch.ones(24)
    gain[[2, 9]] = 100.0
    x = x * gain.reshape(-1, *[1] * (x.dim() - 1 - axis % x.dim()))
    with torch.no_grad():  # large channels have small weights, or they would drown the rest
        module.weight /= gain.reshape(1, -1, *[1] * (module.weight.dim() - 2))
    bare = ranged(QuantLayer(module, Bits(8, 4)), x)
    scaled = QuantLayer(module, Bits(8, 4))
    scaled.scale_input(gain)
    assert error(ranged(scaled, x), module, x) < error(bare, module, x) / 4


@pytest.mark.parametrize("factor", [torch.zeros(24), torch.full((24,), torch.inf), torch.ones(5)])
def test_impossible_multipliers_are_refused(case, factor):
    with pytest.raises(ValueError, match="factor"):
        QuantLayer(case[0], Bits(4, 8)).scale_input(factor)


def test_low_rank_branch_keeps_the_function_and_takes_outliers(case):
    module, x = case
    with torch.no_grad():
        module.weight += 5 * torch.outer(
            torch.randn(8), torch.randn(module.weight[0].numel())
        ).reshape(module.weight.shape)
    layer = QuantLayer(module, Bits(4, 8))
    u, s, v = torch.linalg.svd(module.weight.detach().flatten(1), full_matrices=False)
    down = (s[:1, None] * v[:1]).reshape(1, *module.weight.shape[1:])
    layer.scale_input(torch.rand(24) + 0.5)
    plainly = ranged(QuantLayer(module, Bits(4, 8)), x)
    layer = QuantLayer(module, Bits(4, 8))
    layer.set_low_rank(down, u[:, :1])
    torch.testing.assert_close(plain(layer, x), module(x), rtol=1e-4, atol=1e-4)
    assert error(ranged(layer, x), module, x) < error(plainly, module, x) / 4
    with pytest.raises(ValueError, match="does not fit"):
        layer.set_low_rank(down[:, :3], u[:, :1])


def test_sixteen_bits_pass_through(case):
    module, x = case
    layer = QuantLayer(module, Bits(FP_WIDTH, FP_WIDTH))
    torch.testing.assert_close(layer(x), module(x), rtol=0, atol=1e-6)
    assert all(p.weight_quantizer is None and p.act_quantizer is None for p in layer.parts)


def test_state_rebuilds_everything(case):
    module, x = case
    layer = QuantLayer(module, Bits(4, 8), (16, 8))
    layer.scale_input(torch.rand(24) + 0.5)
    layer.set_low_rank(torch.randn(2, *module.weight.shape[1:]), torch.randn(8, 2))
    first, second = layer.parts
    first.weight_quantizer.set_bit_map(torch.tensor([2, 3, 4, 4, 4, 4, 5, 8]))
    if isinstance(module, nn.Linear):
        second.use_dynamic(symmetric=True, group_size=4)
        second.use_weight_groups(4)
    ranged(layer, x).freeze()
    other = QuantLayer(type(module)(**_arguments(module)), Bits(4, 8))
    other.load(layer.state())
    with torch.no_grad():
        assert torch.equal(other(x), layer(x))
    assert other.state().keys() == layer.state().keys()


def _arguments(module):
    if isinstance(module, nn.Linear):
        return {"in_features": 24, "out_features": 8}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    return {name: getattr(module, name) for name in names}


def test_a_static_state_comes_back_into_a_layer_made_dynamic():
    x = torch.randn(4, 24)
    layer = ranged(QuantLayer(nn.Linear(24, 8), Bits(4, 8)), x)
    layer.freeze()
    other = QuantLayer(nn.Linear(24, 8), Bits(4, 8))
    other.only_part.use_dynamic()
    other.load(layer.state())
    with torch.no_grad():
        other.weight.copy_(layer.weight)
        assert torch.equal(other(x), layer(x))


def test_options_that_a_state_lacks_are_gone_after_loading(case):
    module, x = case
    plain_layer = ranged(QuantLayer(module, Bits(4, 8)), x)
    plain_layer.freeze()
    other = QuantLayer(module, Bits(4, 8))
    other.scale_input(torch.rand(24) + 0.5)
    other.load(plain_layer.state())
    assert other.options == ()
    with torch.no_grad():
        assert torch.equal(other(x), plain_layer(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_mult": torch.ones(5)}, "scales of input channels have shape"),
        ({"low_down": torch.ones(1, 5), "low_up": torch.ones(8, 1)}, "does not fit a weight"),
        ({"patches": torch.tensor(True)}, "only a 2-d convolution"),
    ],
)
def test_options_of_another_shape_are_refused(change, message):
    layer = ranged(QuantLayer(nn.Linear(24, 8), Bits(4, 8)), torch.randn(4, 24))
    layer.freeze()
    with pytest.raises((BrokenModel, ValueError), match=message):
        layer.load(layer.state() | change)


def test_what_a_part_cannot_do_is_refused():
    layer = QuantLayer(nn.Linear(24, 8), Bits(4, 16), (16, 8))
    with pytest.raises(ValueError, match="has 2 parts, not one"):
        _ = layer.only_part
    with pytest.raises(ValueError, match="no ranges to find at run time"):
        layer.parts[0].use_dynamic()


def test_options_are_called_in_one_order_whatever_was_set_first():
    first, second = (QuantLayer(nn.Linear(24, 8), Bits(4, 8)) for _ in range(2))
    with torch.no_grad():
        second.weight.copy_(first.weight)
    factor, down, up = torch.rand(24) + 0.5, torch.randn(2, 24), torch.randn(8, 2)
    first.scale_input(factor)
    first.set_low_rank(down, up)
    second.set_low_rank(down / factor, up)
    second.scale_input(factor)
    kinds = [[type(option) for option in layer.options] for layer in (first, second)]
    assert kinds[0] == kinds[1] == [InputScale, LowRankBranch]
