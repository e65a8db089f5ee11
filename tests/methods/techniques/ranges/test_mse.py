import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from quantarena.methods.core.affine import affine_params
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range, shrink_range
from quantarena.methods.techniques.ranges.threshold import mse_2d_range


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(1, 8),
    symmetric=st.booleans(),
    tail=st.floats(1, 50),
)
def test_mse_is_never_worse_than_minmax_in_its_own_norm(loss, seed, bits, symmetric, tail):
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed))
    x[:, 0] *= tail
    searched = loss(x, mse_range(x, bits, axis=0, symmetric=symmetric), dim=1)
    plain = loss(x, minmax_range(x, bits, axis=0, symmetric=symmetric), dim=1)
    assert (searched <= plain * (1 + 1e-6)).all()


def test_mse_clips_outliers(loss):
    x = torch.randn(4096)
    x[0] = 12.0
    searched, plain = mse_range(x, 4), minmax_range(x, 4)
    assert searched.scale < 0.7 * plain.scale
    assert loss(x, searched) < 0.5 * loss(x, plain)


@pytest.mark.parametrize("norm", [1.0, 2.0, 2.4, 4.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_shrink_is_the_first_of_80_ranges_with_the_smallest_error(loss, norm, symmetric):
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)) - 0.3
    found = shrink_range(x, 4, axis=0, symmetric=symmetric, norm=norm)
    for row, scale, zero in zip(x, found.scale, found.zero_point, strict=True):
        tried = [
            affine_params(row.min() * k, row.max() * k, 4, symmetric)
            for k in (1 - 0.01 * torch.arange(80))
        ]
        best = min(tried, key=lambda params: float(loss(row, params, norm)))
        assert scale == pytest.approx(float(best.scale), rel=1e-6)
        assert zero == best.zero_point


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("norm", [2.0, 2.4])
def test_two_passes_come_within_three_percent_of_80_candidates(loss, bits, norm):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(64, 576, generator=generator)
    x[:32] = x[:32] ** 3
    passes = loss(x, mse_range(x, bits, axis=0, norm=norm), norm, dim=1)
    every = loss(x, shrink_range(x, bits, axis=0, norm=norm), norm, dim=1)
    assert passes.mean() <= 1.03 * every.mean()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("activation", "gain"), [(F.silu, 1.6), (F.gelu, 1.0)])
def test_each_end_shrinks_for_itself(loss, activation, gain, sign):
    x = sign * activation(2 * torch.randn(1, 50_000, generator=torch.Generator().manual_seed(5)))
    found, both, every = (loss(x, f(x, 4)) for f in (mse_range, shrink_range, mse_2d_range))
    assert both > gain * found
    assert found <= 1.01 * every


@pytest.mark.parametrize("search", [mse_range, shrink_range])
def test_the_smaller_the_norm_the_narrower_the_range(search):
    x = torch.randn(1, 4096, generator=torch.Generator().manual_seed(3)) ** 3
    scales = [float(search(x, 4, norm=norm).scale) for norm in (1.0, 2.0, 2.4, 4.0, 8.0)]
    assert scales == sorted(scales)
    assert scales[0] < 0.7 * scales[-1]
