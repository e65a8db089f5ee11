"""The packed product's gradients are those that autograd finds for the float formula."""

import pytest
import torch
from torch import nn

from quantarena.methods.core.affine import dequantize, quantize
from quantarena.methods.core.quantizers.layer_geometry import LayerGeometry
from quantarena.methods.techniques.personalise.packed_weight import PackedWeight
from quantarena.methods.techniques.personalise.product import product
from quantarena.methods.techniques.ranges.minmax import minmax_range

LAYERS = {
    "linear": (lambda: nn.Linear(6, 10), (2, 5, 6)),
    "rows": (lambda: nn.Linear(6, 10), (3, 6)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 5)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2), (1, 4, 8, 8)),
    "groups": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2), (2, 4, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
}


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(5, 7), (6, 3, 3, 3), (4, 5, 3)])
def test_codes_stand_for_the_weight_that_fake_quantization_makes(bits, shape):
    weight = torch.randn(shape)
    params = minmax_range(weight, bits, axis=0)
    packed = PackedWeight.rounded(weight, bits, minmax_range)
    assert torch.equal(packed.value(), dequantize(quantize(weight, params), params))
    assert packed.codes.numel() == -(-weight.numel() * bits // 8)


def test_the_largest_weight_does_not_spoil_a_smaller_one():
    """All weights are decoded in one buffer."""
    small, large = (
        PackedWeight.rounded(torch.randn(size, 4), 4, minmax_range) for size in (3, 300)
    )
    before = small.value().clone()
    large.value()
    assert torch.equal(small.value(), before)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rows", [False, True], ids=["one pair", "a pair each row"])
def test_gradients_are_those_of_the_float_formula(kind, bits, rows):
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape)
    geometry = LayerGeometry.of(layer)
    packed = PackedWeight.rounded(layer.weight, bits, minmax_range)
    inputs = layer.weight.shape[1] * geometry.groups
    gains = []
    for channels in (inputs, layer.weight.shape[0]):
        gain = 1 + 0.3 * torch.randn(len(x) if rows else 1, channels)
        places = [len(gain)] + [1] * (x.dim() - 1)
        places[geometry.channel_axis] = channels
        gains.append(gain.reshape(places))
    ours = [t.clone().requires_grad_() for t in (x, *gains)]
    floats = [t.clone().requires_grad_() for t in (x, *gains)]
    y = product(ours[0], packed, geometry, ours[1], ours[2])
    weight = packed.value().clone()
    expected = floats[2] * geometry.product(floats[0] * floats[1], weight, None)
    assert torch.equal(y, expected)
    away = torch.randn_like(y)
    y.backward(away)
    expected.backward(away)
    for mine, theirs in zip(ours, floats, strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_gradients_in_double_precision():
    """Against numeric differences."""
    packed = PackedWeight.rounded(torch.randn(3, 2, 3, 3), 4, minmax_range)
    geometry = LayerGeometry(2, (1, 1), (1, 1), (1, 1), 1)
    given = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((1, 2, 4, 4), (2, 1, 1), (3, 1, 1))
    ]
    assert torch.autograd.gradcheck(
        lambda x, a, b: product(x, packed, geometry, a, b), given, eps=1e-6
    )


def test_what_does_not_learn_has_no_gradient():
    packed = PackedWeight.rounded(torch.randn(3, 4), 4, minmax_range)
    x, gain = torch.randn(2, 4), torch.ones(3, requires_grad=True)
    product(x, packed, LayerGeometry(), None, gain).sum().backward()
    assert x.grad is None
    assert gain.grad is not None


def test_only_the_input_and_the_gains_are_kept_for_the_way_back():
    packed = PackedWeight.rounded(torch.randn(64, 64), 4, minmax_range)
    x = torch.randn(2, 64, requires_grad=True)
    gains = [torch.ones(64, requires_grad=True) for _ in range(2)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
        product(x, packed, LayerGeometry(), *gains)
    assert sorted(kept) == sorted([x.shape, *(gain.shape for gain in gains)])
