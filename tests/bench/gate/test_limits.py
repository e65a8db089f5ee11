"""Verdicts on limits: they err as seldom as they say, and decide when there is enough to see."""

import numpy as np
import pytest

from quantarena.bench.gate.limits import (
    RISK,
    Check,
    Limit,
    Verdict,
    mean_check,
    median_check,
    passes,
)

LPIPS, SPEED = Limit("lpips", 0.05, most=True), Limit("speedup", 1.3, most=False)
DRAWS = {
    "normal": lambda rng, size: rng.normal(0.05, 0.02, size),
    "skewed": lambda rng, size: rng.gamma(1.0, 0.05, size),
    "heavy": lambda rng, size: 0.05 + 0.01 * rng.standard_t(3, size),
}


def failures(check, draw, limit, size, runs=2000, seed=0, **given):
    rng = np.random.default_rng(seed)
    broken = [check(limit, draw(rng, size), **given).verdict is Verdict.BROKEN for _ in range(runs)]
    return float(np.mean(broken))


@pytest.mark.parametrize("images", [8, 64])
@pytest.mark.parametrize("kind", DRAWS)
def test_a_model_at_its_limit_fails_in_at_most_a_twentieth_of_all_runs(kind, images):
    allowed = RISK + 3 * (RISK * (1 - RISK) / 2000) ** 0.5
    assert failures(mean_check, DRAWS[kind], LPIPS, images) <= allowed


@pytest.mark.parametrize("rounds", [8, 60])
def test_a_model_at_its_speed_fails_in_at_most_a_twentieth_of_all_runs(rounds):
    allowed = RISK + 3 * (RISK * (1 - RISK) / 2000) ** 0.5
    share = failures(median_check, lambda rng, n: rng.lognormal(np.log(1.3), 0.1, n), SPEED, rounds)
    assert share <= allowed
    if rounds == 60:
        assert share > 0.02, "the test is never used to the full"


def test_checks_share_the_risk():
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(2000):
        checks = (
            mean_check(LPIPS, rng.normal(0.05, 0.02, 32), checks=2),
            median_check(SPEED, rng.normal(1.3, 0.1, 60), checks=2),
        )
        broken += not passes(checks)
    assert broken / 2000 <= RISK + 0.015


@pytest.mark.parametrize(
    ("mean", "verdict"), [(0.03, Verdict.KEPT), (0.08, Verdict.BROKEN), (0.0501, Verdict.OPEN)]
)
def test_a_limit_is_kept_broken_or_open(mean, verdict):
    values = np.random.default_rng(0).normal(0, 0.02, 64)
    check = mean_check(LPIPS, values - values.mean() + mean)
    assert check.verdict is verdict
    assert check.low < mean < check.high
    assert passes((check,)) is (verdict is not Verdict.BROKEN)
    assert passes((check,), strict=True) is (verdict is Verdict.KEPT)


@pytest.mark.parametrize(
    ("median", "verdict"), [(1.6, Verdict.KEPT), (1.1, Verdict.BROKEN), (1.31, Verdict.OPEN)]
)
def test_the_same_of_speed(median, verdict):
    ratios = np.random.default_rng(1).normal(0, 0.1, 60)
    check = median_check(SPEED, ratios - np.median(ratios) + median)
    assert check.verdict is verdict
    assert check.value == pytest.approx(median)


def test_the_recommended_number_of_images_decides_four_times_in_five():
    needed = mean_check(LPIPS, _exactly(0.054, 0.02, 16)).needed
    assert needed > 16
    decided = failures(mean_check, lambda rng, n: rng.normal(0.054, 0.02, n), LPIPS, needed)
    assert 0.74 < decided < 0.88


def test_no_number_of_images_is_recommended_where_nobody_would_take_it():
    assert mean_check(LPIPS, _exactly(0.05 + 1e-9, 0.02, 16)).needed is None
    assert mean_check(LPIPS, _exactly(0.05, 0.02, 16)).needed is None


def test_images_of_one_prompt_count_as_one():
    rng = np.random.default_rng(3)
    by_prompt = rng.normal(0.052, 0.02, 8)
    values, groups = np.repeat(by_prompt, 8), tuple(np.repeat(np.arange(8), 8).tolist())
    alone, grouped = mean_check(LPIPS, values), mean_check(LPIPS, values, groups=groups)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    assert mean_check(LPIPS, values, groups=(0,) * 64).verdict is Verdict.OPEN


def test_equal_values_decide_at_once():
    assert mean_check(LPIPS, np.zeros(8)).verdict is Verdict.KEPT
    assert mean_check(LPIPS, np.full(8, 0.05)).verdict is Verdict.KEPT
    assert median_check(SPEED, np.full(8, 1.2)).verdict is Verdict.BROKEN


def test_too_few_rounds_have_no_interval():
    check = median_check(SPEED, np.array([1.0, 1.0, 1.0]))
    assert check == Check(SPEED, 1.0, None, None, 3, "rounds", Verdict.OPEN)


def _exactly(mean, deviation, size):
    values = np.linspace(-1, 1, size)
    return mean + deviation * values / values.std(ddof=1)
