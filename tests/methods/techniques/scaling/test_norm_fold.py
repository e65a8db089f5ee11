import pytest
import torch
from torch.nn import functional as F

from quantarena.methods.core.affine import fake_quantize, quantize
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.scaling.norm_fold import Affine, fold_adaln, fold_norm

BOTH = pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"]
)


def mse(found, expected):
    return float((found - expected).square().mean())


WIDTH, BITS = 48, 8


@pytest.fixture
def block(normal):
    def block(dtype, seed=0):
        """A norm's gamma and beta with one channel 30 times as wide, its input, three consumers."""
        gamma = normal(WIDTH, dtype=dtype, seed=seed).abs() + 0.5
        gamma[5] *= 30
        norm = Affine(gamma, normal(WIDTH, dtype=dtype, seed=seed + 1) * gamma * 0.3)
        consumers = [
            Affine(
                normal(20, WIDTH, dtype=dtype, seed=seed + 2),
                normal(20, dtype=dtype, seed=seed + 3),
            ),
            Affine(normal(12, WIDTH, dtype=dtype, seed=seed + 4), None),
            Affine(normal(7, WIDTH, dtype=dtype, seed=seed + 5)[..., None, None], None),
        ]
        return norm, normal(400, WIDTH, dtype=dtype, seed=seed + 6), consumers

    return block


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
def test_norm_fold_keeps_the_function(apart, block, dtype, bound, fractional):
    norm, x, consumers = block(dtype)
    scale, zero = channelwise(normed(norm, x))
    folded = fold_norm(norm, consumers, scale, zero, fractional=fractional)
    for before, after in zip(consumers, folded.consumers, strict=True):
        assert after.weight.shape == before.weight.shape
        assert (
            apart(read(after, normed(folded.producer, x)), read(before, normed(norm, x))) <= bound
        )


def test_codes_equal_the_channelwise_ones_if_the_zero_point_is_an_integer(apart, block):
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


def test_planted_imbalance_is_folded_away(block):
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


def test_folded_weights_need_a_new_range(block):
    norm, x, consumers = block(torch.float32)
    folded = fold_norm(norm, consumers, *channelwise(normed(norm, x)))
    weight = folded.consumers[0].weight
    stale, fresh = minmax_range(consumers[0].weight, 4, axis=0), minmax_range(weight, 4, axis=0)
    assert float((stale.scale / fresh.scale - 1).abs().median()) > 0.3
    assert 2 * mse(fake_quantize(weight, fresh), weight) < mse(fake_quantize(weight, stale), weight)


def test_integer_product_of_a_folded_layer_is_the_fake_one(apart, block):
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


def test_equal_channels_fold_to_the_identity(block):
    norm, _, consumers = block(torch.float64)
    scale, zero = torch.full((WIDTH,), 0.25).double(), torch.full((WIDTH,), 100.0).double()
    folded = fold_norm(norm, consumers, scale, zero)
    assert torch.equal(folded.producer.weight, norm.weight)
    assert torch.equal(folded.producer.bias, norm.bias)
    assert torch.equal(folded.consumers[0].weight, consumers[0].weight)
    assert torch.equal(folded.consumers[0].bias, consumers[0].bias)
    assert folded.scale == 0.25


@BOTH
def test_a_norm_without_weights_gets_some(apart, block, dtype, bound):
    _, x, consumers = block(dtype)
    bare = F.layer_norm(x, (WIDTH,))
    scale, zero = channelwise(bare)
    for norm in (None, Affine(torch.ones(WIDTH, dtype=dtype), None)):
        folded = fold_norm(norm, consumers, scale, zero)
        found = read(folded.consumers[1], normed(folded.producer, x))
        assert apart(found, read(consumers[1], bare)) <= bound


@BOTH
@pytest.mark.parametrize("biased", [True, False])
def test_adaln_fold_keeps_the_function_and_the_codes(normal, apart, block, dtype, bound, biased):
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
