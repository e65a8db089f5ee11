import numpy as np
import pytest

from quantarena.bench.metrics.bootstrap import (
    interval,
    mean_interval,
    recentred_interval,
    resample_counts,
)


def test_counts_are_resamples():
    counts = resample_counts(50, 300, 1)
    assert counts.shape == (300, 50)
    assert np.all(counts.sum(1) == 50)
    assert counts.min() == 0
    with pytest.raises(ValueError, match="read-only"):
        counts[0, 0] = 1


def test_seed_decides():
    resample_counts.cache_clear()
    first = resample_counts(20, 10, 3).copy()
    resample_counts.cache_clear()
    np.testing.assert_array_equal(first, resample_counts(20, 10, 3))
    assert not np.array_equal(first, resample_counts(20, 10, 4))


def test_mean_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean, low, high = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - half, abs=0.08 * half)
    assert high == pytest.approx(mean + half, abs=0.08 * half)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_coverage_of_a_mean(draw):
    rng = np.random.default_rng(7)
    truth = {"normal": 0.0, "exponential": 1.0}[draw]
    hits = 0
    for _ in range(400):
        _, low, high = mean_interval(getattr(rng, draw)(size=64))
        hits += low <= truth <= high
    assert 0.90 <= hits / 400 <= 0.98


def test_equal_values_give_no_width():
    assert mean_interval(np.full(30, 0.1)) == (pytest.approx(0.1),) * 3


def test_one_value_has_no_interval():
    assert mean_interval(np.array([4.0])) == (4.0, None, None)


@pytest.mark.parametrize("values", [np.array([]), np.zeros((2, 2)), np.array([1.0, np.nan])])
def test_bad_values(values):
    with pytest.raises(ValueError, match="value"):
        mean_interval(values)


def test_intervals():
    replicates = np.linspace(0, 100, 1001)
    assert interval(replicates) == pytest.approx((2.5, 97.5))
    assert recentred_interval(10.0, replicates) == pytest.approx((-37.5, 57.5))


def test_a_pair_of_methods_has_a_narrower_difference():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 5, 100)
    a, b = difficulty + rng.normal(0, 0.5, 100), difficulty + 0.5 + rng.normal(0, 0.5, 100)
    _, low, high = mean_interval(b - a)
    assert low > 0
    assert high - low < 0.4
    assert mean_interval(a)[2] > mean_interval(b)[1]  # alone, they overlap


def test_prompts_that_repeat_are_drawn_together():
    counts = resample_counts(6, 500, 0, (0, 1, 2, 0, 1, 2))
    assert (counts[:, :3] == counts[:, 3:]).all()
    assert (counts.sum(1) == 6).all()
    uneven = resample_counts(3, 500, 0, (0, 0, 1))
    assert set(uneven.sum(1)) == {2, 3, 4}


@pytest.mark.parametrize("groups", [tuple(range(9, 0, -1)), (5,) * 9])
def test_units_that_all_differ_or_are_one_change_nothing(groups):
    np.testing.assert_array_equal(resample_counts(9, 50, 3, groups), resample_counts(9, 50, 3))


def test_coverage_of_a_mean_over_prompts():
    """Images of one prompt share a difficulty: by images the interval is far too narrow."""
    rng = np.random.default_rng(0)
    groups = tuple(np.tile(np.arange(32), 4))
    hits = {"images": 0, "prompts": 0}
    for _ in range(200):
        values = np.tile(rng.normal(size=32), 4) + 0.3 * rng.normal(size=128)
        for kind, unit in (("images", None), ("prompts", groups)):
            _, low, high = mean_interval(values, resamples=400, groups=unit)
            hits[kind] += low <= 0 <= high
    assert hits["prompts"] / 200 > 0.88
    assert hits["images"] / 200 < 0.8
