"""Closed-form reconstruction: least squares on quantized inputs, later columns make errors good."""

import pytest
import torch
from torch import nn

from quantarena.methods.core.affine import dequantize, quantize
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.quantizers.weight import Rounding
from quantarena.methods.core.record.points import evenly
from quantarena.methods.core.record.steps import AllCalls
from quantarena.methods.info import Effort
from quantarena.methods.techniques.calibrate.layer_samples import layer_inputs
from quantarena.methods.techniques.learn.column_rounding import (
    ROWS,
    best_weight,
    columns,
    compensated,
    reconstruct_columns,
    round_columns,
    start_from_columns,
)
from quantarena.methods.techniques.ranges.minmax import minmax_range


def mixed(places=800, width=24, seed=0):
    """Inputs whose channels depend on each other."""
    make = torch.Generator().manual_seed(seed)
    return torch.randn(places, 6, generator=make) @ torch.randn(6, width, generator=make) + (
        0.3 * torch.randn(places, width, generator=make)
    )


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 5),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.Conv2d(6, 5, 3, stride=2, dilation=2),
        nn.Conv2d(6, 5, 1),
        nn.Conv1d(6, 5, 3, padding=2),
    ],
)
def test_columns_make_the_layer_a_product(layer):
    shapes = {nn.Linear: (2, 7, 6), nn.Conv2d: (2, 6, 7, 8), nn.Conv1d: (2, 6, 9)}
    x = torch.randn(shapes[type(layer)])
    quant = QuantLayer(layer, Bits(4, 8))
    found = columns(quant, x) @ layer.weight.flatten(1).T + layer.bias
    wanted = layer(x)
    wanted = wanted if isinstance(layer, nn.Linear) else wanted.flatten(2).transpose(1, 2)
    assert torch.allclose(found.reshape(wanted.shape), wanted, atol=1e-5)


def test_later_columns_make_errors_good():
    x, weight = mixed(), torch.randn(10, 24, generator=torch.Generator().manual_seed(1))
    params = minmax_range(weight, 3, axis=0)
    codes = round_columns(weight, params, x, damp=1e-3)
    assert torch.equal(codes, codes.round())
    assert 0 <= float(codes.min()) <= float(codes.max()) <= 7

    def error(codes):
        return float(((dequantize(codes, params) - weight) @ x.T).square().mean())

    nearest = quantize(weight, params)
    assert 3 * error(codes) < error(nearest)
    alone = round_columns(weight, params, torch.eye(24), damp=0.0)
    assert torch.equal(alone, nearest), "inputs that do not depend on each other have no help"


def test_training_starts_where_the_columns_were_rounded(probe):
    model = probe.context(Bits(3, 8), "paper", Effort(16, 0)).wrap()
    points = AllCalls().draw(probe.trajectory, 0)
    model.set_weight_ranges(minmax_range)
    scales = {n: x.only_part.weight_quantizer.scale.clone() for n, x in model.layers.items()}
    errors = start_from_columns(model, points, len(points))
    assert errors.keys() == {name for name, layer in model.layers.items() if layer.groups == 1}
    assert max(errors.values()) < 1.2
    assert sorted(errors.values())[len(errors) // 2] < 0.8
    name, layer = next((n, x) for n, x in model.layers.items() if not x.is_conv and n in errors)
    quantizer = layer.only_part.weight_quantizer
    rows = columns(layer, layer_inputs(model, points, len(points))[name])
    rows = rows[evenly(len(rows), ROWS)] if len(rows) > ROWS else rows
    codes = round_columns(layer.weight, quantizer.params, rows, 0.01)
    (master,) = quantizer.learn(layer.weight, rounding=Rounding.STE)["weight"]
    assert torch.equal(quantize(master, quantizer.params), codes)
    assert torch.allclose(master, compensated(layer.weight, quantizer.params, rows, 0.01))
    for other, wanted in scales.items():
        assert torch.equal(model.layers[other].only_part.weight_quantizer.scale, wanted)


def test_channels_of_several_widths_are_compensated_on_their_own_grids():
    layer = nn.Linear(24, 8).requires_grad_(False)
    quantizer = QuantLayer(layer, Bits(4, 8)).only_part.weight_quantizer
    quantizer.set_bit_map(torch.tensor([2] * 4 + [4] * 4))
    quantizer.find_params(layer.weight, minmax_range, symmetric=False)
    codes = round_columns(layer.weight, quantizer.params, mixed(), 1e-3)
    assert codes[:4].max() <= 3 < codes[4:].max()


def test_the_order_of_columns_is_put_back():
    x = torch.diag(torch.arange(1.0, 25.0).flip(0).sqrt())[:, torch.randperm(24)]
    weight = torch.randn(4, 24)
    params = minmax_range(weight, 4, axis=0)
    assert torch.equal(round_columns(weight, params, x, 0.0), quantize(weight, params))


def test_dead_and_few_inputs_are_no_trouble():
    x = mixed(places=5)
    x[:, 3] = 0
    weight = torch.randn(4, 24)
    codes = round_columns(weight, minmax_range(weight, 4, axis=0), x, 0.01)
    assert torch.isfinite(codes).all()
    still = best_weight(weight, torch.zeros(5, 24), torch.zeros(5, 24), 0.01)
    assert torch.allclose(still, weight, atol=1e-4)


def test_the_best_weight_answers_what_it_is_given():
    plain = mixed()
    weight = torch.randn(10, 24)
    assert torch.allclose(best_weight(weight, plain, plain, 0.01), weight, atol=1e-3)
    # inputs that arrive halved: the weight doubles
    assert torch.allclose(
        best_weight(weight, plain, plain / 2, 1e-6), 2 * weight, rtol=0.02, atol=0.02
    )
    seen = torch.round(plain)
    better = best_weight(weight, plain, seen, 1e-3)
    gaps = [((seen @ w.T - plain @ weight.T) ** 2).mean() for w in (weight, better)]
    assert gaps[1] < 0.9 * gaps[0]


@pytest.mark.parametrize("layer", [nn.Linear(24, 10), nn.Conv2d(24, 10, 1)])
def test_a_layer_is_better_on_other_inputs_too(layer):
    layer.requires_grad_(False)
    quant = QuantLayer(layer, Bits(3, 4))
    x, other = mixed(), mixed(seed=0).flip(0) * 0.97
    if isinstance(layer, nn.Conv2d):
        x, other = (v.T.reshape(1, 24, 20, 40) for v in (x, other))
    quantizer = quant.only_part.act_quantizer
    quantizer.set_params(minmax_range(x, 4))
    quant.set_weight_ranges(minmax_range, symmetric=False)
    before = float((quant(other) - layer(other)).square().mean())
    weight = quant.weight.clone()
    share = reconstruct_columns(quant, x, minmax_range)
    after = float((quant(other) - layer(other)).square().mean())
    assert share < 0.6
    assert after < 0.6 * before
    assert torch.equal(quant.weight, weight), "the float weight is that of the network"
    quant.freeze()
    assert quant.only_part.weight_quantizer.codes.max() <= 7
