import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.methods.core.affine import QuantParams, affine_params
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range
from quantarena.methods.techniques.ranges.percentile import percentile_mse_range
from quantarena.methods.techniques.ranges.rows import best_of, minmax_rows
from quantarena.methods.techniques.ranges.threshold import mse_1d_range, mse_2d_range

MSE = {mse_1d_range: 2.4, mse_2d_range: 2.4, percentile_mse_range: 2.0}


def test_blocks_of_rows_equal_one_block(sample):
    x = sample((1100, 3), 2)
    together, some = mse_2d_range(x, 3, axis=0), mse_2d_range(x[1020:1030], 3, axis=0)
    assert torch.equal(together.scale[1020:1030], some.scale)


@pytest.mark.parametrize("search", MSE, ids=lambda search: search.__name__)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(1, 8),
    symmetric=st.booleans(),
    tail=st.floats(1, 100),
    shift=st.floats(-4, 4),
    power=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_never_worse_than_minmax_in_its_own_norm(
    loss, sample, search, seed, bits, symmetric, tail, shift, power
):
    x = sample((3, 64), seed) + shift
    x[:, 0] *= tail
    x *= power
    norm = MSE[search]
    searched = loss(x, search(x, bits, axis=0, symmetric=symmetric), norm, 1)
    if search is mse_1d_range and not symmetric:  # has no asymmetric range for rows of both signs
        most = x.abs().amax(1, keepdim=True)
        ends = torch.where(x.amin(1, keepdim=True) < 0, -most, 0.0), most * (x > 0).any(1)[:, None]
        plain = loss(x, affine_params(*ends, bits, False), norm, 1)
    else:
        plain = loss(x, minmax_range(x, bits, axis=0, symmetric=symmetric), norm, 1)
    assert (searched <= plain * (1 + 1e-5)).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), bits=st.integers(1, 4), shift=st.floats(-2, 2))
def test_2d_equals_a_loop_over_every_width_and_zero_point(loss, sample, seed, bits, shift):
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


@pytest.mark.parametrize("search", [*MSE, mse_range])
def test_planted_outliers_cost_searches_less_than_two_thirds_of_minmax(loss, sample, search):
    x = sample((4096,), 3)
    x[5], x[6] = 12.0, -12.0
    norm = MSE.get(search, 2.4)
    assert loss(x, search(x, 4), norm) < 0.66 * loss(x, minmax_range(x, 4), norm)


@pytest.mark.parametrize("bits", [4, 8])
def test_2d_on_a_long_row_is_as_good_as_on_its_values(loss, sample, bits):
    x = sample((1, 20_000), 5) ** 3 + 1
    long = mse_2d_range(x, bits, axis=0)
    best = minmax_rows(x, bits, False)
    for part in torch.split(torch.linspace(0.2, 1, 33), 11):
        low, high = x.amin() * part, x.amax() * part
        scale = ((high - low) / (2**bits - 1)).unsqueeze(0)
        grid = QuantParams(scale, torch.round(-low / scale), bits)
        best = best_of(x, best, grid, 2.4)
    assert loss(x, long, 2.4) <= loss(x, best, 2.4) * 1.01


def test_2d_beats_1d_on_a_lopsided_tensor(loss, sample):
    x = sample((4096,), 4).abs() * 8 - 0.5
    assert loss(x, mse_2d_range(x, 4), 2.4) < 0.7 * loss(x, mse_1d_range(x, 4), 2.4)


def test_1d_has_no_asymmetric_range_for_a_row_of_both_signs(sample):
    x = torch.nn.functional.silu(sample((100_000,), 6) * 2)
    found = mse_1d_range(x, 8)
    assert int(found.zero_point) == 128
    assert float(found.scale) > 1.5 * float(minmax_range(x, 8).scale)


def test_one_sign_uses_the_whole_grid(sample):
    x = sample((512,), 5).abs()
    assert mse_1d_range(x, 4).zero_point == 0
    assert mse_1d_range(-x, 4).zero_point == 15
