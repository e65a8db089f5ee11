"""What every named range search does, and the ones made of others."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.methods.core.affine import fake_quantize, quantize
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range
from quantarena.methods.techniques.ranges.named import SEARCHES, default_range, unsigned

ALL = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@ALL
@settings(max_examples=15, deadline=None)
@given(
    shape=shapes,
    axis=st.integers(-4, 3) | st.none(),
    bits=st.integers(1, 8),
    symmetric=st.booleans(),
    seed=st.integers(0, 999),
    power=st.sampled_from([1e-42, 1e-12, 1.0, 1e6, 1e30]),
)
def test_any_shape_axis_and_size(sample, search, shape, axis, bits, symmetric, seed, power):
    x = sample(shape, seed, power)
    if axis is not None:
        axis = axis % len(shape)
    params = search(x, bits, axis=axis, symmetric=symmetric)
    expected = [1] * len(shape)
    if axis is not None:
        expected[axis] = shape[axis]
    assert params.scale.shape == params.zero_point.shape == tuple(expected)
    assert params.bits == bits
    assert torch.isfinite(params.scale).all()
    assert (params.scale > 0).all()
    assert torch.equal(params.zero_point, params.zero_point.round())
    assert ((params.zero_point >= 0) & (params.zero_point <= 2**bits - 1)).all()
    codes = quantize(x, params)
    assert ((codes >= 0) & (codes <= 2**bits - 1)).all()
    if symmetric and bits > 1:
        assert (params.zero_point == 2 ** (bits - 1)).all()


@ALL
@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-42])
@pytest.mark.parametrize("symmetric", [True, False])
def test_constant_tensors(search, value, symmetric):
    x = torch.full((4, 5), value)
    params = search(x, 4, axis=0, symmetric=symmetric)
    assert torch.allclose(fake_quantize(x, params), x, rtol=1e-6, atol=1e-8)


@ALL
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_infinities_are_refused_by_name_even_where_clipped(search, bad):
    x = torch.randn(2, 5000)
    x[1, 17] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        search(x, 8, axis=0)


@ALL
def test_empty_is_refused_and_half_precision_taken(search):
    with pytest.raises(ValueError, match="empty"):
        search(torch.empty(3, 0), 8, axis=0)
    assert search(torch.randn(9).bfloat16(), 8).scale.dtype == torch.float32


@ALL
@pytest.mark.parametrize("symmetric", [True, False])
def test_channels_at_once_equal_a_loop(sample, search, symmetric):
    x = sample((4, 6, 5), 1) * torch.logspace(-2, 2, 6).reshape(1, 6, 1)
    together = search(x, 4, axis=1, symmetric=symmetric)
    for index in range(6):
        alone = search(x[:, index], 4, symmetric=symmetric)
        assert torch.allclose(together.scale[0, index, 0], alone.scale, rtol=1e-6)
        assert together.zero_point[0, index, 0] == alone.zero_point


@ALL
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 3, 3)])
def test_channels_at_once_equal_a_loop_bit_for_bit(search, symmetric, shape):
    x = torch.randn(shape) * torch.logspace(-2, 2, 5).reshape(-1, *[1] * (len(shape) - 1))
    together = search(x, 4, axis=0, symmetric=symmetric)
    for index in range(5):
        alone = search(x[index], 4, symmetric=symmetric)
        assert torch.equal(together.scale[index].reshape(()), alone.scale.reshape(()))
        assert torch.equal(together.zero_point[index].reshape(()), alone.zero_point.reshape(()))
    assert together.scale.shape == (5, *[1] * (len(shape) - 1))


@ALL
def test_last_axis(search):
    x = torch.randn(6, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0])
    params = search(x, 8, axis=1)
    assert params.scale.shape == (1, 4)
    assert params.scale[0, 1] > 3 * params.scale[0, 0]


@ALL
@pytest.mark.parametrize("axis", [None, 0])
def test_empty_tensor_is_an_error(search, axis):
    with pytest.raises(ValueError, match="empty"):
        search(torch.empty(0, 3), 4, axis=axis)


@ALL
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_an_error(search, bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        search(torch.tensor([1.0, bad, 2.0]), 4)


@ALL
def test_zero_channel(search):
    x = torch.stack([torch.zeros(9), torch.randn(9)])
    params = search(x, 4, axis=0)
    assert torch.isfinite(params.scale).all()
    assert (fake_quantize(x, params)[0] == 0).all()


@ALL
def test_half_precision_input_gives_float32_ranges(search):
    assert search(torch.randn(16).half(), 4).scale.dtype == torch.float32


@ALL
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_unsigned_grid_has_code_zero_at_zero(search, bits):
    scores = torch.randn(3, 64, generator=torch.Generator().manual_seed(4)).mul(3).softmax(1)
    params = unsigned(search)(scores, bits, axis=0)
    assert params.scale.shape == (3, 1)
    assert (params.zero_point == 0).all()
    assert (quantize(torch.zeros(3, 1), params) == 0).all()
    # one half step at most where nothing is clipped
    reach = params.scale * (2**bits - 1)
    error = (fake_quantize(scores, params) - scores).abs()[scores <= reach]
    assert error.max() <= params.scale.max() / 2 + 1e-6


def test_unsigned_spends_no_code_below_zero(loss):
    x = torch.rand(5, 200)
    plain = unsigned(minmax_range)(x, 4)
    assert plain.scale * 15 == pytest.approx(float(x.max()))
    assert loss(x, plain, 2.0) < 0.3 * loss(x, minmax_range(x, 4, symmetric=True), 2)


def test_unsigned_refuses_negative_values_and_symmetry():
    with pytest.raises(ValueError, match="negative"):
        unsigned(minmax_range)(torch.tensor([-0.1, 1.0]), 8)
    with pytest.raises(ValueError, match="symmetric"):
        unsigned(minmax_range)(torch.ones(2), 8, symmetric=True)
    with pytest.raises(ValueError, match="NaN or infinity"):
        unsigned(mse_range)(torch.tensor([1.0, float("inf")]), 8)


@pytest.mark.parametrize("bits", range(1, 9))
def test_default_clips_nothing_at_eight_bits_and_searches_below(bits):
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(6)) ** 3
    want = (minmax_range if bits == 8 else mse_range)(x, bits, axis=0)
    other = (mse_range if bits == 8 else minmax_range)(x, bits, axis=0)
    found = default_range(x, bits, axis=0)
    assert torch.equal(found.scale, want.scale)
    assert torch.equal(found.zero_point, want.zero_point)
    # at 8 bits the search clips nothing here either
    assert bits in (1, 8) or not torch.equal(found.scale, other.scale)
