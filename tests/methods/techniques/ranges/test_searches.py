import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.methods.core.affine import QuantParams, fake_quantize, quantize
from quantarena.methods.core.quantizers.group_views import (
    group_range,
    grouped,
    leading_range,
    ungrouped,
)
from quantarena.methods.techniques.ranges.ema import EmaRange, ema_range
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range
from quantarena.methods.techniques.ranges.named import SEARCHES
from quantarena.methods.techniques.ranges.percentile import percentile_mse_range, percentile_range
from quantarena.methods.techniques.ranges.rows import best_of, condensed, losses_of, minmax_rows
from quantarena.methods.techniques.ranges.threshold import mse_1d_range, mse_2d_range

ALL = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
MSE = {mse_1d_range: 2.4, mse_2d_range: 2.4, percentile_mse_range: 2.0}
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
widths = st.integers(1, 8)


def sample(shape, seed, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def loss(x, params, norm, dim=None):
    error = ((fake_quantize(x, params) - x).double() / x.abs().max().double()).abs().pow(norm)
    return error.mean() if dim is None else error.mean(dim)


@ALL
@settings(max_examples=15, deadline=None)
@given(
    shape=shapes,
    axis=st.integers(-4, 3) | st.none(),
    bits=widths,
    symmetric=st.booleans(),
    seed=st.integers(0, 999),
    power=st.sampled_from([1e-42, 1e-12, 1.0, 1e6, 1e30]),
)
def test_any_shape_axis_and_size(search, shape, axis, bits, symmetric, seed, power):
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
def test_channels_at_once_equal_a_loop(search, symmetric):
    x = sample((4, 6, 5), 1) * torch.logspace(-2, 2, 6).reshape(1, 6, 1)
    together = search(x, 4, axis=1, symmetric=symmetric)
    for index in range(6):
        alone = search(x[:, index], 4, symmetric=symmetric)
        assert torch.allclose(together.scale[0, index, 0], alone.scale, rtol=1e-6)
        assert together.zero_point[0, index, 0] == alone.zero_point


def test_blocks_of_rows_equal_one_block():
    x = sample((1100, 3), 2)
    together, some = mse_2d_range(x, 3, axis=0), mse_2d_range(x[1020:1030], 3, axis=0)
    assert torch.equal(together.scale[1020:1030], some.scale)


@pytest.mark.parametrize("search", MSE, ids=lambda search: search.__name__)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=widths,
    symmetric=st.booleans(),
    tail=st.floats(1, 100),
    shift=st.floats(-4, 4),
    power=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_never_worse_than_minmax_in_its_own_norm(search, seed, bits, symmetric, tail, shift, power):
    x = sample((3, 64), seed) + shift
    x[:, 0] *= tail
    x *= power
    norm = MSE[search]
    searched = loss(x, search(x, bits, axis=0, symmetric=symmetric), norm, 1)
    plain = loss(x, minmax_range(x, bits, axis=0, symmetric=symmetric), norm, 1)
    assert (searched <= plain * (1 + 1e-5)).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), bits=st.integers(1, 4), shift=st.floats(-2, 2))
def test_2d_equals_a_loop_over_every_width_and_zero_point(seed, bits, shift):
    x = sample((40,), seed) + shift
    top, low, high = 2**bits - 1, min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    best = float(loss(x, minmax_range(x, bits), 2.4))
    for index in range(1, 101):
        scale = (high - low) * index / 100 / top
        first = min(max(top - round(high / scale), 0), top)
        last = min(max(round(-low / scale), 0), top)
        for zero in range(first, last + 1):
            params = minmax_range(x, bits)
            params.scale.fill_(scale)
            params.zero_point.fill_(zero)
            best = min(best, float(loss(x, params, 2.4)))
    assert float(loss(x, mse_2d_range(x, bits), 2.4)) <= best * (1 + 1e-3) + 1e-12


@pytest.mark.parametrize("search", [percentile_range, percentile_mse_range])
def test_planted_outlier_leaves_percentiles_a_tenth_of_the_error(search):
    x = sample((8192,), 3)
    x[5] = 40.0
    # the bulk, which min-max spends almost no codes on
    bulk = torch.cat([x[:5], x[6:]])
    searched, plain = search(x, 4), minmax_range(x, 4)
    assert loss(bulk, searched, 2.0) < 0.1 * loss(bulk, plain, 2.0)


@pytest.mark.parametrize("search", [*MSE, mse_range])
def test_planted_outliers_cost_searches_less_than_two_thirds_of_minmax(search):
    x = sample((4096,), 3)
    x[5], x[6] = 12.0, -12.0
    norm = MSE.get(search, 2.4)
    assert loss(x, search(x, 4), norm) < 0.66 * loss(x, minmax_range(x, 4), norm)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    bits=widths,
    norm=st.sampled_from([0.5, 1.0, 2.0, 2.4, 4.0]),
    power=st.sampled_from([1e-20, 1.0, 1e30]),
)
def test_losses_of_candidates_are_those_of_fake_quantization(seed, bits, norm, power):
    x = sample((3, 70), seed, power)
    first = minmax_rows(x, bits, False)
    scale = torch.cat([first.scale, first.scale * 0.7], dim=1)
    grid = QuantParams(scale, first.zero_point.expand(3, 2), bits)
    size = x.double().abs().amax(1)
    for index in range(2):
        one = QuantParams(grid.scale[:, index : index + 1], grid.zero_point[:, :1], bits)
        error = (fake_quantize(x, one) - x).double() / size[:, None]
        want = error.abs().pow(norm).mean(1).float()
        assert torch.allclose(losses_of(x, grid, norm)[:, index], want, rtol=1e-3, atol=1e-9)


def test_counted_values_are_repeated_values():
    x = sample((2, 50), 3)
    counts = torch.randint(1, 5, (2, 50), generator=torch.Generator().manual_seed(0)).float()
    for row, count in zip(x, counts, strict=True):
        repeated = row.repeat_interleave(count.long()).unsqueeze(0)
        plain = minmax_rows(repeated, 3, False)
        once = losses_of(row.unsqueeze(0), plain, 2.4, count.unsqueeze(0))
        assert torch.allclose(once / count.sum(), losses_of(repeated, plain, 2.4), rtol=1e-5)


@pytest.mark.parametrize("power", [1e-30, 1.0, 1e38])
def test_condensed_rows_count_all_values_and_keep_the_sum(power):
    x = sample((2, 20_000), 4).clamp(-3, 3) * power
    values, counts = condensed(x)
    assert values.shape == counts.shape == (2, 8192)
    assert (counts.sum(1) == 20_000).all()
    assert torch.allclose((values.double() * counts).sum(1), x.double().sum(1), rtol=1e-4)
    short, none = condensed(x[:, :100])
    assert none is None
    assert torch.equal(short, x[:, :100])


@pytest.mark.parametrize("bits", [4, 8])
def test_2d_on_a_long_row_is_as_good_as_on_its_values(bits):
    x = sample((1, 20_000), 5) ** 3 + 1
    long = mse_2d_range(x, bits, axis=0)
    best = minmax_rows(x, bits, False)
    for part in torch.split(torch.linspace(0.2, 1, 33), 11):
        low, high = x.amin() * part, x.amax() * part
        scale = ((high - low) / (2**bits - 1)).unsqueeze(0)
        grid = QuantParams(scale, torch.round(-low / scale), bits)
        best = best_of(x, best, grid, 2.4)
    assert loss(x, long, 2.4) <= loss(x, best, 2.4) * 1.01


def test_2d_beats_1d_on_a_lopsided_tensor():
    x = sample((4096,), 4).abs() * 8 - 0.5
    assert loss(x, mse_2d_range(x, 4), 2.4) < 0.7 * loss(x, mse_1d_range(x, 4), 2.4)


def test_one_sign_uses_the_whole_grid():
    x = sample((512,), 5).abs()
    assert mse_1d_range(x, 4).zero_point == 0
    assert mse_1d_range(-x, 4).zero_point == 15


def test_percentile_is_an_order_statistic():
    x = torch.arange(-100.0, 101.0)[torch.randperm(201)]
    params = percentile_range(x, 8, keep=0.95)
    assert params.scale * 255 == pytest.approx(180.0)
    exact = percentile_range(x, 8, keep=1.0)
    assert torch.equal(exact.scale, minmax_range(x, 8).scale)
    with pytest.raises(ValueError, match="keep"):
        percentile_range(x, 8, keep=0.5)


@settings(max_examples=25, deadline=None)
@given(
    batches=st.integers(1, 8),
    momentum=st.sampled_from([0.0, 0.9, 0.95]),
    axis=st.sampled_from([None, 1, 2, -1]),
    symmetric=st.booleans(),
    seed=st.integers(0, 999),
)
def test_running_range_closed_form_equals_updates(batches, momentum, axis, symmetric, seed):
    x = sample((batches, 3, 4), seed)
    running = EmaRange(momentum)
    dims = (0, 1) if axis is None else (0,) if axis % 3 == 2 else (1,)
    for batch in x:
        before = running
        running = running.update(batch.amin(dims), batch.amax(dims))
        assert before is not running
    got = ema_range(x, 8, axis=axis, symmetric=symmetric, momentum=momentum)
    want = running.params(8, symmetric=symmetric)
    assert torch.allclose(got.scale.flatten(), want.scale.flatten(), rtol=1e-4)
    assert ((got.zero_point.flatten() - want.zero_point.flatten()).abs() <= 1).all()
    assert fake_quantize(x, got).shape == x.shape


def test_running_range_edges():
    assert ema_range(torch.tensor([1.0, 3.0]), 8, momentum=0.5).scale * 255 == pytest.approx(2.0)
    assert ema_range(torch.ones(2, 3), 8, axis=1).scale.shape == (1, 3)
    with pytest.raises(ValueError, match="axis 0"):
        ema_range(torch.ones(2, 3), 8, axis=0)
    with pytest.raises(ValueError, match="no batch"):
        EmaRange().params(8)
    with pytest.raises(ValueError, match="NaN or infinity"):
        EmaRange().update(torch.tensor(0.0), torch.tensor(float("inf")))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    axis=st.integers(-3, 3),
    groups=st.integers(1, 3),
    group=st.sampled_from([1, 2, 64]),
)
def test_groups_are_a_view_and_come_back(shape, axis, groups, group):
    axis = axis % len(shape) if axis >= 0 else axis
    axis = max(axis, -len(shape))
    shape[axis] = groups * group
    x = sample(shape, 0)
    view = grouped(x, group, axis=axis)
    assert view.data_ptr() == x.data_ptr()
    assert torch.equal(ungrouped(view, axis=axis), x)


@ALL
def test_group_ranges_equal_a_loop(search):
    x = sample((3, 128, 2, 2), 6) * torch.logspace(-1, 1, 128).reshape(1, -1, 1, 1)
    params = group_range(search, x, 4, 64)
    assert params.scale.shape == (3, 2, 1, 1, 1)
    alone = search(x[1, 64:], 4)
    assert torch.allclose(params.scale[1, 1].flatten(), alone.scale.flatten(), rtol=1e-6)
    assert fake_quantize(grouped(x, 64), params).shape == (3, 2, 64, 2, 2)
    with pytest.raises(ValueError, match="do not divide"):
        group_range(search, x, 4, 48)


def test_planted_group_beats_per_channel():
    x = sample((8, 256), 7)
    x[:, 64:128] *= 50
    fine = fake_quantize(grouped(x, 64), group_range(minmax_range, x, 4, 64)).flatten(1)
    coarse = fake_quantize(x, minmax_range(x, 4, axis=0))
    quiet = torch.arange(256) < 64
    better, worse = (float((y - x)[:, quiet].square().mean()) for y in (fine, coarse))
    assert better < 0.02 * worse


def test_step_and_head_tables():
    x = sample((4, 2, 6, 6), 9)
    assert leading_range(minmax_range, x, 8, 2).scale.shape == (4, 2, 1, 1)
    for kept in (0, 4):
        with pytest.raises(ValueError, match="keep"):
            leading_range(minmax_range, x, 8, kept)
    with pytest.raises(ValueError, match="empty"):
        leading_range(minmax_range, torch.empty(0, 3), 8, 1)
