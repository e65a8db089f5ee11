import pytest
import torch

from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.percentile import percentile_mse_range, percentile_range


@pytest.mark.parametrize("search", [percentile_range, percentile_mse_range])
def test_planted_outlier_leaves_percentiles_a_tenth_of_the_error(loss, sample, search):
    x = sample((8192,), 3)
    x[5] = 40.0
    # the bulk, which min-max spends almost no codes on
    bulk = torch.cat([x[:5], x[6:]])
    searched, plain = search(x, 4), minmax_range(x, 4)
    assert loss(bulk, searched, 2.0) < 0.1 * loss(bulk, plain, 2.0)


def test_percentile_is_an_order_statistic():
    x = torch.arange(-100.0, 101.0)[torch.randperm(201)]
    params = percentile_range(x, 8, keep=0.95)
    assert params.scale * 255 == pytest.approx(180.0)
    exact = percentile_range(x, 8, keep=1.0)
    assert torch.equal(exact.scale, minmax_range(x, 8).scale)
    with pytest.raises(ValueError, match="keep"):
        percentile_range(x, 8, keep=0.5)
