"""The two distributions agree with scipy.stats, which takes long to import."""

import numpy as np
import pytest
from scipy import stats

from quantarena.leaderboard.inference.order import least_ranks
from quantarena.leaderboard.inference.student import reach, two_sided, widening


@pytest.mark.parametrize("freedom", [1, 2, 7, 63, 1e9])
def test_quantiles(freedom):
    assert reach(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-12)
    ratio = stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975)
    assert widening(freedom) == pytest.approx(ratio, rel=1e-12)
    assert reach(freedom, 0.5) == pytest.approx(stats.t.ppf(0.75, freedom), rel=1e-12)


def test_tails():
    values = np.array([0.0, 0.3, -2.0, 30.0, np.inf, np.nan])
    freedom = np.array([1.0, 3.5, 7.0, 20.0, 5.0, 5.0])
    wanted = 2 * stats.t.sf(np.abs(values), freedom)
    assert two_sided(values, freedom) == pytest.approx(wanted, rel=1e-10, nan_ok=True)
    assert np.isnan(two_sided(2.0, [0.0, np.nan])).all()


def test_equal_values_share_the_least_rank():
    values = np.random.default_rng(0).integers(0, 4, (7, 40)).astype(float)
    values[2, :9] = np.inf
    assert np.array_equal(least_ranks(values), stats.rankdata(values, method="min", axis=0))
    assert least_ranks(np.empty((0, 3))).shape == (0, 3)
