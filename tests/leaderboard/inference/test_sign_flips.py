"""Tests of all pairs: how often they claim what is not so, what they find, what their ends hold."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from quantarena.leaderboard.inference.run_effects import equal_means_over_runs
from quantarena.leaderboard.inference.sign_flips import (
    DRAWS,
    EXACT,
    equal_means,
    mean_bounds,
    sign_patterns,
    step_down,
)


def scores(rng, count, units, kind="gauss"):
    """(N, n) scores of equal contestants; prompts move all of them alike."""
    prompt = rng.normal(size=units)
    if kind == "t2":
        return prompt + rng.standard_t(2, size=(count, units))
    spread = rng.uniform(0.2, 3, (count, 1)) if kind == "spread" else 1.0
    return prompt + spread * rng.normal(size=(count, units))


def gaps(table):
    one, other = np.triu_indices(len(table), 1)
    return table[one] - table[other]


def test_all_patterns_are_tried_where_units_are_few():
    patterns = sign_patterns(5)
    assert patterns.shape == (16, 5)
    assert len({tuple(row) for row in patterns}) == 16
    assert (patterns[0] == 1).all()
    assert len(sign_patterns(EXACT + 1)) == DRAWS
    assert (sign_patterns(EXACT + 1)[0] == 1).all()


def test_one_pair_has_the_exact_p_value_of_the_sign_flip_test():
    rng = np.random.default_rng(3)
    gap = rng.normal(0.8, 1, 9)
    seen = abs(gap.mean())
    every = [abs((np.array(s) * gap).mean()) for s in product([1, -1], repeat=9)]
    expected = np.mean(np.array(every) >= seen - 1e-12)
    assert equal_means(gap[None])[0] == pytest.approx(expected)


def test_five_units_separate_nothing_and_six_can():
    assert equal_means(np.ones((1, 5)) + np.arange(5) / 10)[0] == pytest.approx(1 / 16)
    assert equal_means(np.ones((1, 6)) + np.arange(6) / 10)[0] == pytest.approx(1 / 32)


@pytest.mark.parametrize("kind", ["gauss", "t2", "spread"])
@pytest.mark.parametrize("units", [6, 8, 16])
def test_equal_contestants_are_seldom_separated(units, kind):
    """At most 5 % of boards by construction; 300 boards leave 4 standard errors of room."""
    rng = np.random.default_rng([units, len(kind)])
    false = sum((equal_means(gaps(scores(rng, 8, units, kind))) <= 0.05).any() for _ in range(300))
    assert false / 300 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 300)


def test_two_clusters_are_told_apart():
    """Half a deviation between two groups of four, 64 prompts: the old votes found 24 %."""
    rng = np.random.default_rng(5)
    shift = np.repeat([0.0, 0.5], 4)
    one, other = np.triu_indices(8, 1)
    apart = shift[one] != shift[other]
    found = [
        (equal_means(gaps(scores(rng, 8, 64) + shift[:, None])) <= 0.05)[apart].mean()
        for _ in range(60)
    ]
    assert np.mean(found) >= 0.32


def test_a_step_down_finds_more_than_one_bar_for_all():
    rng = np.random.default_rng(6)
    noise = np.abs(rng.normal(size=(2000, 10)))
    seen = np.array([9.0] * 9 + [2.2])
    p = step_down(np.vstack([seen, noise]))
    assert p[9] <= 0.05, "alone among true differences it is judged by its own noise"
    assert np.mean(noise.max(axis=1) >= 2.2) > 0.05


def test_equal_rows_never_differ_and_a_clone_changes_nothing():
    rng = np.random.default_rng(7)
    table = scores(rng, 5, 20) + np.arange(5)[:, None] * 0.4
    alone = equal_means(gaps(table))
    cloned = np.vstack([table, table[2]])
    one, other = np.triu_indices(6, 1)
    p = equal_means(gaps(cloned))
    assert p[(one == 2) & (other == 5)] == 1.0
    assert p[other < 5] == pytest.approx(alone)


def test_unknown_scores_are_left_out_pair_by_pair():
    rng = np.random.default_rng(8)
    gap = rng.normal(1, 1, (1, 12))
    holes = np.hstack([gap, np.full((1, 3), np.nan)])
    assert equal_means(holes)[0] == pytest.approx(equal_means(gap)[0], abs=0.01)
    assert equal_means(np.full((1, 8), np.nan))[0] == 1.0
    assert equal_means(np.empty((0, 8))).shape == (0,)


@pytest.mark.parametrize(("units", "kind"), [(6, "gauss"), (16, "t2"), (64, "gauss")])
def test_ends_hold_the_mean_as_often_as_they_say(units, kind):
    rng = np.random.default_rng([9, units])
    held = 0
    for _ in range(600):
        low, high = mean_bounds(gaps(scores(rng, 2, units, kind)))
        held += bool(low[0] <= 0 <= high[0])
    expected = 0.96875 if units == 6 else 0.95
    assert abs(held / 600 - expected) <= 4 * np.sqrt(0.05 * 0.95 / 600)


def test_ends_agree_with_students_interval_on_gaussian_data():
    rng = np.random.default_rng(10)
    gap = rng.normal(0.3, 1, 400)
    low, high = mean_bounds(gap[None])
    ends = stats.t.interval(0.95, 399, gap.mean(), stats.sem(gap))
    assert (low[0], high[0]) == pytest.approx(ends, abs=0.02)


def test_too_few_units_have_no_ends():
    low, high = mean_bounds(np.array([[1.0, 2, 3, 4, 5], [1, 2, 3, np.nan, np.nan]]))
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def with_runs(rng, run, shift=0.0):
    """(N, n, S) scores where each run moves a contestant on all prompts alike."""
    table = rng.normal(size=(1, 24, 1)) + run * rng.normal(size=(4, 1, 5))
    return table + rng.normal(size=(4, 24, 5)) + np.array([0, 0, 0, shift])[:, None, None]


def test_what_a_run_does_to_all_prompts_is_no_difference_of_methods():
    rng = np.random.default_rng(11)
    runs = plain = 0
    for _ in range(60):
        table = with_runs(rng, run=0.5)
        one, other = np.triu_indices(4, 1)
        gap = table[one] - table[other]
        runs += bool((equal_means_over_runs(gap) <= 0.05).any())
        plain += bool((equal_means(gap.mean(axis=2)) <= 0.05).any())
    assert runs / 60 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)
    assert plain / 60 >= 0.25, "the planted fault: prompts alone do not see it"


def test_runs_find_a_difference_that_all_of_them_show():
    rng = np.random.default_rng(12)
    found = 0
    for _ in range(20):
        table = with_runs(rng, run=0.05, shift=1.0)
        one, other = np.triu_indices(4, 1)
        found += bool((equal_means_over_runs(table[one] - table[other]) <= 0.05)[other == 3].all())
    assert found >= 16


def plain_p_values(gaps, signs):
    """The step-down by its definition: all statistics at once, the largest of all below each."""
    n = gaps.shape[1]
    r = (signs @ gaps.T) ** 2 / np.maximum(n * np.square(gaps).sum(axis=1), 1e-300)
    r = np.minimum(r, 1 - 1e-12)
    t = (n - 1) * r / (1 - r)
    found = np.empty(len(gaps))
    worst = 0.0
    for number in np.argsort(-t[0], kind="stable"):
        below = t[:, t[0] <= t[0][number]]
        worst = max(worst, float(np.mean(below.max(axis=1) >= t[0][number] * (1 - 1e-9))))
        found[number] = worst
    return found


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0])
def test_blocks_and_groups_give_what_the_definition_gives(spread):
    """More pairs than a group holds and more patterns than a block, with ties among the pairs."""
    rng = np.random.default_rng(11)
    table = scores(rng, 14, 16) + spread * rng.normal(size=(14, 1))
    for kind in (gaps(table), np.sign(gaps(table))):
        assert np.array_equal(equal_means(kind), plain_p_values(kind, sign_patterns(16)))
