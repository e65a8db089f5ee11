import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from quantarena.methods.core.affine import fake_quantize, quantize
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.scaling.channel_scaling import (
    dilate,
    scale_input,
    smooth,
)

BOTH = pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"]
)


def mse(found, expected):
    return float((found - expected).square().mean())


def linear(layer, x):
    return F.linear(x, layer.weight, layer.bias)


@BOTH
@pytest.mark.parametrize("kernel", [(), (3,), (3, 3)], ids=["linear", "conv1d", "conv2d"])
def test_smoothing_keeps_the_function(normal, apart, dtype, bound, kernel):
    x = normal(2, 6, *[8 for _ in kernel], dtype=dtype) * torch.logspace(-1, 2, 6).to(
        dtype
    ).reshape(1, -1, *[1 for _ in kernel])
    weights = [normal(o, 6, *kernel, dtype=dtype, seed=o) for o in (4, 5)]
    done = smooth(x.abs().transpose(0, 1).flatten(1).amax(1), *weights)
    call = {0: F.linear, 1: F.conv1d, 2: F.conv2d}[len(kernel)]
    divided = x / done.factor.reshape(1, -1, *[1 for _ in kernel])
    for before, after in zip(weights, done.weights, strict=True):
        assert apart(call(divided, after), call(x, before)) <= bound


def test_smoothing_factors_are_the_papers():
    weight, peak = torch.tensor([[1.0, -4.0], [0.5, 2.0]]), torch.tensor([16.0, 9.0])
    assert smooth(peak, weight).factor.tolist() == pytest.approx([4.0, 1.5])
    assert smooth(peak, weight, alpha=1.0).factor.tolist() == [16.0, 9.0]
    assert smooth(peak, weight, alpha=0.0).factor.tolist() == [1.0, 0.25]
    assert smooth(peak, weight, beta=0.0).factor.tolist() == [4.0, 3.0]
    assert smooth(peak, weight, alpha=1.0, beta=0.5).factor.tolist() == [16.0, 4.5]
    with pytest.raises(ValueError, match=r"beta 1\.5"):
        smooth(peak, weight, beta=1.5)
    shared = smooth(peak, weight, 4 * weight)
    assert shared.factor.tolist() == pytest.approx([2.0, 0.75]), "consumers share the factor"


def test_smoothing_leaves_dead_channels():
    weight = torch.tensor([[1.0, 0.0, 2.0]])
    done = smooth(torch.tensor([0.0, 3.0, 8.0]), weight)
    assert done.factor.tolist() == [1.0, 1.0, 2.0]


def test_smoothing_wins_where_one_input_channel_is_large(normal):
    x, weight = normal(256, 64), normal(32, 64, seed=1)
    x[:, 7] *= 50
    exact = x @ weight.T
    done = smooth(x.abs().amax(0), weight)

    def error(x, w):
        wq = fake_quantize(w, minmax_range(w, 8, axis=0))
        return mse(fake_quantize(x, minmax_range(x, 8)) @ wq.T, exact)

    assert 8 * error(x / done.factor, done.weights[0]) < error(x, weight)


@pytest.mark.parametrize(
    ("args", "alpha"),
    [
        ((torch.ones(3), torch.ones(2, 4)), 0.5),
        ((torch.ones(4), torch.ones(2, 4)), 1.5),
        ((torch.ones(4),), 0.5),
        ((-torch.ones(4), torch.ones(2, 4)), 0.5),
        ((torch.tensor([1.0, torch.inf]), torch.ones(2, 2)), 0.5),
    ],
)
def test_smoothing_refuses(args, alpha):
    with pytest.raises(ValueError, match=r"smoothing needs|does not fit"):
        smooth(*args, alpha=alpha)


def test_grouped_convolutions_do_not_fit():
    with pytest.raises(ValueError, match="does not fit the input channels"):
        scale_input(nn.Conv2d(8, 8, 3, groups=4).weight, torch.ones(8))


@BOTH
@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["linear", "conv2d"])
def test_dilation_keeps_function_and_row_ranges(normal, apart, dtype, bound, kernel):
    weight, x = (
        normal(4, 40, *kernel, dtype=dtype),
        normal(2, 40, *[6 for _ in kernel], dtype=dtype, seed=1),
    )
    done = dilate(weight)
    call = F.conv2d if kernel else F.linear
    shape = (1, -1, *[1 for _ in kernel])
    assert apart(call(x / done.factor.reshape(shape), done.weights[0]), call(x, weight)) <= bound
    before, after = weight.flatten(1).aminmax(dim=1), done.weights[0].flatten(1).aminmax(dim=1)
    assert torch.equal(after.min, before.min)
    assert torch.equal(after.max, before.max)
    for symmetric in (False, True):
        scales = [
            minmax_range(w, 4, axis=0, symmetric=symmetric).scale for w in (weight, *done.weights)
        ]
        assert torch.equal(scales[0], scales[1])
    assert bool((done.factor >= 1).all())
    assert done.factor.mean() > 1.05
    extremes = torch.cat([weight.flatten(1).argmax(1), weight.flatten(1).argmin(1)])
    held = extremes // weight[0, 0].numel()
    assert set(done.fixed.nonzero().flatten().tolist()) == set(held.tolist())
    assert bool((done.factor[held] == 1).all())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    outputs=st.integers(1, 6),
    inputs=st.integers(1, 30),
    shift=st.sampled_from([-5.0, 0.0, 0.5, 5.0]),
)
def test_dilation_is_maximal(normal, seed, outputs, inputs, shift):
    weight = normal(outputs, inputs, dtype=torch.float64, seed=seed) + shift
    done = dilate(weight)
    low, high = weight.aminmax(dim=1)
    for k in range(inputs):
        more = weight[:, k] * done.factor[k] * 1.001
        breaks = bool(((more > high) | (more < low)).any())
        lifts = weight[:, k] * 1.001 != weight[:, k]  # an extreme that moves inwards breaks too
        assert breaks or (bool(done.fixed[k]) and bool(lifts.any()))
    assert torch.equal(done.weights[0].amin(1), low)
    assert torch.equal(done.weights[0].amax(1), high)


def test_dilation_by_hand():
    weight = torch.tensor([[4.0, 1.0, -0.5, 0.0], [-2.0, 0.5, 1.0, 0.0]])
    done = dilate(weight)  # column 2: row 0 allows 1 (it is the minimum there)
    assert done.factor.tolist() == [1.0, 2.0, 1.0, 1.0]
    assert done.fixed.tolist() == [True, False, True, False]
    two = dilate(weight[:1, :2], torch.tensor([[3.0, 2.0]]))
    assert two.factor.tolist() == [1.0, 1.0], "the second layer's minimum holds column 1"


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(2, 3),
        torch.ones(1, 1),
        torch.tensor([[-1.0, -2.0, -3.0]]),
        torch.tensor([[1e-30, 1.0, -1.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_dilation_of_odd_layers_is_safe(weight):
    done = dilate(weight)
    assert bool(torch.isfinite(done.factor).all())
    assert bool((done.factor >= 1).all())
    assert torch.equal(done.weights[0].amin(1), weight.amin(1))
    assert torch.equal(done.weights[0].amax(1), weight.amax(1))


def test_dilation_is_nearly_inert_where_outputs_are_many(normal):
    square, narrow = dilate(normal(256, 256)), dilate(normal(16, 512))
    assert square.factor.mean() < 1.03
    assert square.fixed.float().mean() > 0.7
    assert narrow.factor.mean() > 1.3
    assert narrow.fixed.float().mean() < 0.1


def test_dilation_wins_from_wide_to_narrow(normal):
    """Loud inputs behind small weights: their range goes into the room that the rows have."""
    x, weight = normal(128, 512), normal(8, 512, seed=1)
    weight[:, 100:108] *= 0.05
    x[:, 100:108] *= 16
    done = dilate(weight)
    exact, divided = x @ weight.T, x / done.factor

    def error(x, w):
        return mse(fake_quantize(x, minmax_range(x, 4)) @ w.T, exact)

    assert 4 * error(divided, done.weights[0]) < error(x, weight)
    # the quantize step may carry the factor instead: same codes
    params = minmax_range(divided, 4)
    codes = torch.round(x / (done.factor * params.scale)) + params.zero_point
    assert (codes.clamp(0, 15) != quantize(divided, params)).float().mean() < 1e-4


@pytest.mark.parametrize(
    "weights",
    [
        (),
        (torch.ones(3),),
        (torch.ones(2, 3), torch.ones(2, 4)),
        (torch.ones(0, 3),),
        (torch.tensor([[1.0, torch.nan]]),),
    ],
)
def test_dilation_refuses(weights):
    with pytest.raises(ValueError, match="dilation needs"):
        dilate(*weights)
