import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from quantarena.methods.core.affine import affine_params, fake_quantize, quantize
from quantarena.methods.core.quantizers.range_search import mixed_range
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range, shrink_range
from quantarena.methods.techniques.ranges.named import SEARCHES, default_range, unsigned
from quantarena.methods.techniques.ranges.threshold import mse_2d_range


def loss(x, params, norm=2.4):
    return (fake_quantize(x, params) - x).abs().pow(norm)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(1, 8),
    symmetric=st.booleans(),
    tail=st.floats(1, 50),
)
def test_mse_is_never_worse_than_minmax_in_its_own_norm(seed, bits, symmetric, tail):
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed))
    x[:, 0] *= tail
    searched = loss(x, mse_range(x, bits, axis=0, symmetric=symmetric)).mean(1)
    plain = loss(x, minmax_range(x, bits, axis=0, symmetric=symmetric)).mean(1)
    assert (searched <= plain + 1e-12).all()


def test_mse_clips_outliers():
    x = torch.randn(4096)
    x[0] = 12.0
    searched, plain = mse_range(x, 4), minmax_range(x, 4)
    assert searched.scale < 0.7 * plain.scale
    assert loss(x, searched).mean() < 0.5 * loss(x, plain).mean()


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 3, 3)])
def test_channels_at_once_equal_a_loop(search, symmetric, shape):
    x = torch.randn(shape) * torch.logspace(-2, 2, 5).reshape(-1, *[1] * (len(shape) - 1))
    together = search(x, 4, axis=0, symmetric=symmetric)
    for index in range(5):
        alone = search(x[index], 4, symmetric=symmetric)
        assert torch.equal(together.scale[index].reshape(()), alone.scale.reshape(()))
        assert torch.equal(together.zero_point[index].reshape(()), alone.zero_point.reshape(()))
    assert together.scale.shape == (5, *[1] * (len(shape) - 1))


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_last_axis(search):
    x = torch.randn(6, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0])
    params = search(x, 8, axis=1)
    assert params.scale.shape == (1, 4)
    assert params.scale[0, 1] > 3 * params.scale[0, 0]


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("axis", [None, 0])
def test_empty_tensor_is_an_error(search, axis):
    with pytest.raises(ValueError, match="empty"):
        search(torch.empty(0, 3), 4, axis=axis)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_an_error(search, bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        search(torch.tensor([1.0, bad, 2.0]), 4)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_zero_channel(search):
    x = torch.stack([torch.zeros(9), torch.randn(9)])
    params = search(x, 4, axis=0)
    assert torch.isfinite(params.scale).all()
    assert (fake_quantize(x, params)[0] == 0).all()


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_half_precision_input_gives_float32_ranges(search):
    assert search(torch.randn(16).half(), 4).scale.dtype == torch.float32


@pytest.mark.parametrize("norm", [1.0, 2.0, 2.4, 4.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_shrink_is_the_first_of_80_ranges_with_the_smallest_error(norm, symmetric):
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)) - 0.3
    found = shrink_range(x, 4, axis=0, symmetric=symmetric, norm=norm)
    for row, scale, zero in zip(x, found.scale, found.zero_point, strict=True):
        tried = [
            affine_params(row.min() * k, row.max() * k, 4, symmetric)
            for k in (1 - 0.01 * torch.arange(80))
        ]
        best = min(tried, key=lambda params: float(loss(row, params, norm).mean()))
        assert scale == pytest.approx(float(best.scale), rel=1e-6)
        assert zero == best.zero_point


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("norm", [2.0, 2.4])
def test_two_passes_come_within_three_percent_of_80_candidates(bits, norm):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(64, 576, generator=generator)
    x[:32] = x[:32] ** 3
    passes = loss(x, mse_range(x, bits, axis=0, norm=norm), norm).mean(1)
    every = loss(x, shrink_range(x, bits, axis=0, norm=norm), norm).mean(1)
    assert passes.mean() <= 1.03 * every.mean()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("activation", "gain"), [(F.silu, 1.6), (F.gelu, 1.0)])
def test_each_end_shrinks_for_itself(activation, gain, sign):
    x = sign * activation(2 * torch.randn(1, 50_000, generator=torch.Generator().manual_seed(5)))
    found, both, every = (loss(x, f(x, 4)).mean() for f in (mse_range, shrink_range, mse_2d_range))
    assert both > gain * found
    assert found <= 1.01 * every


@pytest.mark.parametrize("search", [mse_range, shrink_range])
def test_the_smaller_the_norm_the_narrower_the_range(search):
    x = torch.randn(1, 4096, generator=torch.Generator().manual_seed(3)) ** 3
    scales = [float(search(x, 4, norm=norm).scale) for norm in (1.0, 2.0, 2.4, 4.0, 8.0)]
    assert scales == sorted(scales)
    assert scales[0] < 0.7 * scales[-1]


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
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


def test_unsigned_spends_no_code_below_zero():
    x = torch.rand(5, 200)
    plain = unsigned(minmax_range)(x, 4)
    assert plain.scale * 15 == pytest.approx(float(x.max()))
    assert loss(x, plain, 2.0).mean() < 0.3 * loss(x, minmax_range(x, 4, symmetric=True), 2).mean()


def test_unsigned_refuses_negative_values_and_symmetry():
    with pytest.raises(ValueError, match="negative"):
        unsigned(minmax_range)(torch.tensor([-0.1, 1.0]), 8)
    with pytest.raises(ValueError, match="symmetric"):
        unsigned(minmax_range)(torch.ones(2), 8, symmetric=True)
    with pytest.raises(ValueError, match="NaN or infinity"):
        unsigned(mse_range)(torch.tensor([1.0, float("inf")]), 8)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mixed_widths_equal_one_search_a_channel(axis, symmetric):
    x = torch.randn(6, 6, 6, generator=torch.Generator().manual_seed(5))
    widths = torch.tensor([4, 1, 8, 4, 3, 8], dtype=torch.uint8)
    calls = []

    def counted(x, bits, *, axis=None, symmetric=False):
        calls.append(bits)
        return mse_range(x, bits, axis=axis, symmetric=symmetric)

    scale, zero = mixed_range(counted, x, widths, axis=axis, symmetric=symmetric)
    assert calls == [1, 3, 4, 8]
    for index, width in enumerate(widths):
        alone = mse_range(x.select(axis, index), int(width), symmetric=symmetric)
        assert scale.select(axis, index).item() == pytest.approx(alone.scale.item(), rel=1e-6)
        assert zero.select(axis, index).item() == alone.zero_point.item()
    assert scale.shape == minmax_range(x, 8, axis=axis).scale.shape


def test_mixed_widths_must_fit():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="do not fit 4 channels"):
        mixed_range(minmax_range, x, torch.tensor([4, 4, 4]))
    with pytest.raises(ValueError, match="1 to 8 bits"):
        mixed_range(minmax_range, x, torch.tensor([4, 4, 0, 4]))


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
