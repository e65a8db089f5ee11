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
    fold_into_producer,
    scale_input,
    smooth,
)
from quantarena.methods.techniques.scaling.norm_fold import Affine, fold_adaln, fold_norm

BOTH = pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"]
)


def normal(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def apart(found, expected):
    """Largest difference over the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def mse(found, expected):
    return float((found - expected).square().mean())


def linear(layer, x):
    return F.linear(x, layer.weight, layer.bias)


# scaling, smoothing


@BOTH
@pytest.mark.parametrize("kernel", [(), (3,), (3, 3)], ids=["linear", "conv1d", "conv2d"])
def test_smoothing_keeps_the_function(dtype, bound, kernel):
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


def test_smoothing_wins_where_one_input_channel_is_large():
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
def test_folding_into_the_producer(dtype, bound):
    x, factor = normal(3, 5, dtype=dtype), normal(6, dtype=dtype, seed=1).abs() + 0.1
    first, bias = normal(6, 5, dtype=dtype, seed=2), normal(6, dtype=dtype, seed=3)
    second = normal(4, 6, dtype=dtype, seed=4)
    weight, shift = fold_into_producer(first, bias, factor)
    expected = F.linear(F.linear(x, first, bias), second)
    assert (
        apart(F.linear(F.linear(x, weight, shift), scale_input(second, factor)), expected) <= bound
    )
    norm = nn.GroupNorm(2, 6, dtype=dtype)
    y = normal(3, 6, 4, dtype=dtype, seed=5)
    gamma, beta = fold_into_producer(normal(6, dtype=dtype, seed=6), bias, factor)
    found = F.group_norm(y, 2, gamma, beta) * factor[:, None]
    assert apart(found, F.group_norm(y, 2, normal(6, dtype=dtype, seed=6), bias)) <= bound
    assert fold_into_producer(norm.weight, None, factor)[1] is None
    with pytest.raises(ValueError, match="5 outputs"):
        fold_into_producer(normal(5, 6), None, factor)


# dilation


@BOTH
@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["linear", "conv2d"])
def test_dilation_keeps_function_and_row_ranges(dtype, bound, kernel):
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
def test_dilation_is_maximal(seed, outputs, inputs, shift):
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


def test_dilation_is_nearly_inert_where_outputs_are_many():
    square, narrow = dilate(normal(256, 256)), dilate(normal(16, 512))
    assert square.factor.mean() < 1.03
    assert square.fixed.float().mean() > 0.7
    assert narrow.factor.mean() > 1.3
    assert narrow.fixed.float().mean() < 0.1


def test_dilation_wins_from_wide_to_narrow():
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


# norm folds

WIDTH, BITS = 48, 8


def block(dtype, seed=0):
    """A norm's gamma and beta with one channel 30 times as wide, its input, three consumers."""
    gamma = normal(WIDTH, dtype=dtype, seed=seed).abs() + 0.5
    gamma[5] *= 30
    norm = Affine(gamma, normal(WIDTH, dtype=dtype, seed=seed + 1) * gamma * 0.3)
    consumers = [
        Affine(
            normal(20, WIDTH, dtype=dtype, seed=seed + 2), normal(20, dtype=dtype, seed=seed + 3)
        ),
        Affine(normal(12, WIDTH, dtype=dtype, seed=seed + 4), None),
        Affine(normal(7, WIDTH, dtype=dtype, seed=seed + 5)[..., None, None], None),
    ]
    return norm, normal(400, WIDTH, dtype=dtype, seed=seed + 6), consumers


def channelwise(x, bits=BITS):
    """Scale and zero point of each channel, in the precision of ``x``."""
    params = minmax_range(x, bits, axis=1)
    return params.scale.flatten().to(x), params.zero_point.flatten().to(x)


def encode(x, scale, zero):
    return (torch.round(x / scale) + zero).clamp(0, 2**BITS - 1)


def normed(norm, x):
    return F.layer_norm(x, (WIDTH,), norm.weight, norm.bias)


def read(layer, x):
    return F.linear(x, layer.weight.flatten(1), layer.bias)


@BOTH
@pytest.mark.parametrize("fractional", [False, True])
def test_norm_fold_keeps_the_function(dtype, bound, fractional):
    norm, x, consumers = block(dtype)
    scale, zero = channelwise(normed(norm, x))
    folded = fold_norm(norm, consumers, scale, zero, fractional=fractional)
    for before, after in zip(consumers, folded.consumers, strict=True):
        assert after.weight.shape == before.weight.shape
        assert (
            apart(read(after, normed(folded.producer, x)), read(before, normed(norm, x))) <= bound
        )


def test_codes_equal_the_channelwise_ones_if_the_zero_point_is_an_integer():
    norm, x, consumers = block(torch.float64)
    y = normed(norm, x)
    scale, zero = channelwise(y)
    expected = encode(y, scale, zero)
    folded = fold_norm(norm, consumers, scale, zero)
    assert folded.zero_point == folded.zero_point.round()
    moved = normed(folded.producer, x)
    codes = encode(moved, folded.scale, folded.zero_point)
    assert torch.equal(codes, expected)
    for before, after in zip(consumers, folded.consumers, strict=True):  # and what they stand for
        found = read(after, (codes - folded.zero_point) * folded.scale)
        assert apart(found, read(before, (expected - zero) * scale)) <= 1e-10
    loose = fold_norm(norm, consumers, scale, zero, fractional=True)
    assert loose.zero_point != loose.zero_point.round()
    fraction = encode(normed(loose.producer, x), loose.scale, loose.zero_point)
    assert not torch.equal(fraction, expected)


def test_planted_imbalance_is_folded_away():
    norm, x, consumers = block(torch.float32)
    y, layer = normed(norm, x), consumers[0]
    exact = read(layer, y)
    channel = mse(read(layer, fake_quantize(y, minmax_range(y, BITS, axis=1))), exact)
    naive = mse(read(layer, fake_quantize(y, minmax_range(y, BITS))), exact)
    folded = fold_norm(norm, consumers, *channelwise(y))
    codes = encode(normed(folded.producer, x), folded.scale, folded.zero_point)
    reader = folded.consumers[0]
    found = mse(read(reader, (codes - folded.zero_point) * folded.scale), exact)
    assert found == pytest.approx(channel, rel=0.05)
    assert 5 * found < naive


def test_folded_weights_need_a_new_range():
    norm, x, consumers = block(torch.float32)
    folded = fold_norm(norm, consumers, *channelwise(normed(norm, x)))
    weight = folded.consumers[0].weight
    stale, fresh = minmax_range(consumers[0].weight, 4, axis=0), minmax_range(weight, 4, axis=0)
    assert float((stale.scale / fresh.scale - 1).abs().median()) > 0.3
    assert 2 * mse(fake_quantize(weight, fresh), weight) < mse(fake_quantize(weight, stale), weight)


def test_integer_product_of_a_folded_layer_is_the_fake_one():
    norm, x, consumers = block(torch.float32)
    folded = fold_norm(norm, consumers, *channelwise(normed(norm, x)))
    codes = encode(normed(folded.producer, x), folded.scale, folded.zero_point)
    weight, bias = folded.consumers[0]
    params = minmax_range(weight, BITS, axis=0)
    fake = F.linear((codes - folded.zero_point) * folded.scale, fake_quantize(weight, params), bias)
    left, right = codes.long(), (quantize(weight, params) - params.zero_point).long()
    accumulated = left @ right.T - int(folded.zero_point) * right.sum(1)
    found = accumulated * (folded.scale * params.scale.flatten()) + bias
    assert apart(found, fake) <= 1e-5


def test_equal_channels_fold_to_the_identity():
    norm, _, consumers = block(torch.float64)
    scale, zero = torch.full((WIDTH,), 0.25).double(), torch.full((WIDTH,), 100.0).double()
    folded = fold_norm(norm, consumers, scale, zero)
    assert torch.equal(folded.producer.weight, norm.weight)
    assert torch.equal(folded.producer.bias, norm.bias)
    assert torch.equal(folded.consumers[0].weight, consumers[0].weight)
    assert torch.equal(folded.consumers[0].bias, consumers[0].bias)
    assert folded.scale == 0.25


@BOTH
def test_a_norm_without_weights_gets_some(dtype, bound):
    _, x, consumers = block(dtype)
    bare = F.layer_norm(x, (WIDTH,))
    scale, zero = channelwise(bare)
    for norm in (None, Affine(torch.ones(WIDTH, dtype=dtype), None)):
        folded = fold_norm(norm, consumers, scale, zero)
        found = read(folded.consumers[1], normed(folded.producer, x))
        assert apart(found, read(consumers[1], bare)) <= bound


@BOTH
@pytest.mark.parametrize("biased", [True, False])
def test_adaln_fold_keeps_the_function_and_the_codes(dtype, bound, biased):
    _, x, consumers = block(dtype)
    shift, gain = slice(0, WIDTH), slice(WIDTH, 2 * WIDTH)  # then a gate, which must not change
    bias = normal(3 * WIDTH, dtype=dtype, seed=12) if biased else None
    modulation = Affine(normal(3 * WIDTH, 10, dtype=dtype, seed=11) * 0.2, bias)
    modulation.weight[WIDTH + 5] *= 30
    context = normal(len(x), 10, dtype=dtype, seed=13)

    def out(layer):
        mod = F.linear(context, layer.weight, layer.bias)
        return F.layer_norm(x, (WIDTH,)) * (1 + mod[:, gain]) + mod[:, shift], mod[:, 2 * WIDTH :]

    y, gate = out(modulation)
    scale, zero = channelwise(y)
    kept = modulation.weight.clone()
    folded = fold_adaln(modulation, shift, gain, consumers, scale, zero)
    moved, moved_gate = out(folded.producer)
    assert torch.equal(modulation.weight, kept), "the original was written to"
    assert torch.equal(moved_gate, gate)
    for before, after in zip(consumers, folded.consumers, strict=True):
        assert apart(read(after, moved), read(before, y)) <= bound
    differ = encode(moved, folded.scale, folded.zero_point) != encode(y, scale, zero)
    assert differ.float().mean() <= (0 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scale": torch.ones(4)}, r"must be \(K,\)"),
        ({"scale": torch.zeros(6)}, "positive"),
        ({"zero_point": torch.full((6,), 0.5)}, "integers"),
        ({"norm": Affine(torch.ones(5), None)}, "norm of"),
        ({"consumers": [Affine(torch.ones(3, 5), None)]}, "does not read 6 channels"),
        ({"consumers": [Affine(torch.ones(3, 6, 3, 3), None)]}, "pads with zeros"),
    ],
)
def test_norm_fold_refuses(change, match):
    settings = {"norm": None, "consumers": [], "scale": torch.ones(6), "zero_point": torch.ones(6)}
    with pytest.raises(ValueError, match=match):
        fold_norm(**(settings | change))


def test_adaln_fold_refuses_other_rows():
    with pytest.raises(ValueError, match="6 shift rows and 5 gain rows"):
        fold_adaln(
            Affine(torch.ones(12, 3), None),
            slice(0, 6),
            slice(6, 11),
            [],
            torch.ones(6),
            torch.ones(6),
        )
