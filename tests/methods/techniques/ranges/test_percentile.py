import pytest
import torch

from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.percentile import (
    percentile_mse_range,
    percentile_range,
    quantile,
)


@pytest.mark.parametrize("search", [percentile_range, percentile_mse_range])
def test_planted_outlier_leaves_percentiles_a_tenth_of_the_error(loss, sample, search):
    x = sample((8192,), 3)
    x[5] = 40.0
    # the bulk, which min-max spends almost no codes on
    bulk = torch.cat([x[:5], x[6:]])
    searched, plain = search(x, 4), minmax_range(x, 4)
    assert loss(bulk, searched, 2.0) < 0.1 * loss(bulk, plain, 2.0)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.37, 0.999, 0.99999, 1.0])
def test_quantiles_are_interpolated(sample, share):
    x = sample((3, 1000), 1)
    want = torch.quantile(x, share, dim=1, keepdim=True)
    assert torch.allclose(quantile(x, share), want, atol=1e-6)
    assert torch.allclose(quantile(x, share, torch.ones_like(x)), want, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.87, 0.999, 1.0])
def test_a_weight_counts_as_so_many_values(sample, share):
    x = sample((1, 50), 2)
    counts = torch.randint(0, 9, (1, 50), generator=torch.Generator().manual_seed(0))
    repeated = x[0].repeat_interleave(counts[0])[None]
    assert torch.allclose(quantile(x, share, counts), quantile(repeated, share), atol=1e-6)


def test_percentile_is_an_order_statistic():
    x = torch.arange(-100.0, 101.0)[torch.randperm(201)]
    params = percentile_range(x, 8, keep=0.95)
    assert params.scale * 255 == pytest.approx(180.0)
    exact = percentile_range(x, 8, keep=1.0)
    assert torch.equal(exact.scale, minmax_range(x, 8).scale)
    with pytest.raises(ValueError, match="keep"):
        percentile_range(x, 8, keep=0.5)
