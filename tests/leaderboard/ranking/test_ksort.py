import math

import numpy as np
import pytest
import trueskill
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.leaderboard.ranking.ksort import (
    DEFAULT_RULES,
    Rating,
    Rules,
    rate,
    truncation,
    update,
)
from quantarena.leaderboard.ranking.votes import Vote, tabulate


def outcome_of(tiers):
    tiers = np.asarray(tiers)
    matrix = (tiers[:, None] < tiers[None, :]) + 0.5 * (tiers[:, None] == tiers[None, :])
    np.fill_diagonal(matrix, 0)
    return matrix


def ladder(size):
    names = tuple(f"m{n}" for n in range(size))
    return names, Vote("u", names, tuple((name,) for name in names))


def test_first_pair_equals_trueskill():
    names, vote = ladder(2)
    ours = rate([vote], names)
    setting = trueskill.TrueSkill(tau=0.0, draw_probability=0.0)
    winner, loser = trueskill.rate_1vs1(
        setting.create_rating(), setting.create_rating(), env=setting
    )
    # trueskill's own error function is good to about 1e-7.
    assert ours["m0"].mu == pytest.approx(winner.mu, abs=1e-5)
    assert ours["m0"].sigma == pytest.approx(winner.sigma, abs=1e-5)
    assert ours["m1"].mu == pytest.approx(loser.mu, abs=1e-5)
    assert ours["m1"].sigma == pytest.approx(loser.sigma, abs=1e-5)


def test_pair_with_unequal_sigmas_equals_trueskill():
    # Both players' beta and sigma belong into c^2; the printed formula mixes the index.
    setting = trueskill.TrueSkill(tau=0.0, draw_probability=0.0)
    a, b = setting.create_rating(22, 2.0), setting.create_rating(29, 7.0)
    mu, var = update(
        np.array([22.0, 29.0]), np.array([4.0, 49.0]), outcome_of([0, 1]), DEFAULT_RULES
    )
    a, b = trueskill.rate_1vs1(a, b, env=setting)
    assert mu == pytest.approx([a.mu, b.mu], abs=1e-5)
    assert np.sqrt(var) == pytest.approx([a.sigma, b.sigma], abs=1e-5)


def test_pairs_are_summed_at_the_ratings_before_the_vote():
    mu = np.array([20.0, 25.0, 31.0])
    var = np.array([9.0, 16.0, 4.0])
    new, _ = update(mu, var, outcome_of([0, 1, 2]), DEFAULT_RULES)
    expected = mu.copy()
    for i, q in [(0, 1), (0, 2), (1, 2)]:
        c = math.sqrt(2 * DEFAULT_RULES.beta**2 + var[i] + var[q])
        v, _ = truncation(np.array((mu[i] - mu[q]) / c))
        expected[i] += var[i] / c * v
        expected[q] -= var[q] / c * v
    assert new == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [2, 3, 4, 6, 8])
def test_variance_stays_positive_where_the_printed_factor_does_not(size):
    # The underdog beats everyone: 1 - sum(...) is negative from K=5 on, even on a first vote.
    mu = np.linspace(25 - 3 * size, 25 + 3 * size, size)
    var = np.full(size, DEFAULT_RULES.sigma**2)
    new_mu, new_var = update(mu, var, outcome_of(range(size)), DEFAULT_RULES)
    assert np.all(np.isfinite(new_mu))
    assert np.all((new_var > 0) & (new_var < var))


def test_the_printed_factor_is_indeed_negative_at_eight():
    x = (np.arange(8)[:, None] - np.arange(8)[None, :]) * 6.0 / math.sqrt(4 * 30)
    _, w = truncation(x)
    share = DEFAULT_RULES.sigma**2 / (2 * DEFAULT_RULES.beta**2 + 2 * DEFAULT_RULES.sigma**2)
    printed = 1 - share * np.triu(w, 1).sum(axis=1)
    assert printed.min() < 0


def test_a_settled_contestant_can_still_move():
    names, vote = ladder(2)
    back = Vote("u", names, (("m1",), ("m0",)))
    settled = rate([vote] * 1500, names)
    turned = rate([vote] * 1500 + [back] * 1500, names)
    assert settled["m0"].mu - settled["m1"].mu > 10
    assert turned["m0"].mu - turned["m1"].mu < 0.5 * (settled["m0"].mu - settled["m1"].mu)
    assert settled["m0"].sigma > 0


def test_a_tie_is_half_a_win_each_way():
    names = ("a", "b", "c")
    tied = rate([Vote("u", names, (names,))], names)
    assert [rating.mu for rating in tied.values()] == pytest.approx([25.0] * 3)
    assert all(rating.sigma < DEFAULT_RULES.sigma for rating in tied.values())
    mu, _ = update(np.array([20.0, 30.0]), np.full(2, 25.0), outcome_of([0, 0]), DEFAULT_RULES)
    assert 20 < mu[0] < mu[1] < 30
    assert mu.sum() == pytest.approx(50)


def test_stable_at_absurd_leads():
    v, w = truncation(np.array([-1e6, -50.0, -8.0, 0.0, 8.0, 50.0, 1e6]))
    assert np.all(np.isfinite(v))
    assert np.all((w >= 0) & (w <= 1))
    assert v[0] == pytest.approx(1e6)
    assert v[3] == pytest.approx(math.sqrt(2 / math.pi))
    assert v[-1] == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-100, 100), st.floats(1e-3, 1e3), st.integers(0, 3)),
        min_size=1,
        max_size=8,
    )
)
def test_any_vote_leaves_finite_symmetric_ratings(players):
    mu, var, tiers = (np.array(column, dtype=float) for column in zip(*players, strict=True))
    rules = Rules(floor=1e-9)
    new_mu, new_var = update(mu, var, outcome_of(tiers), rules)
    assert np.all(np.isfinite(new_mu))
    assert np.all(new_var > 0)
    flip = np.arange(len(mu))[::-1]
    flipped_mu, flipped_var = update(mu[flip], var[flip], outcome_of(tiers[flip]), rules)
    assert flipped_mu[flip] == pytest.approx(new_mu, rel=1e-9, abs=1e-9)
    assert flipped_var[flip] == pytest.approx(new_var, rel=1e-9)


def test_one_contestant_and_ragged_votes():
    assert rate([], ("a",))["a"] == Rating(25.0, pytest.approx(25 / 3))
    assert rate([Vote("u", ("a",), (("a",),))], ("a",))["a"].mu == 25.0
    names, full = ladder(6)
    ragged = [full, Vote("u", ("m0", "m5"), (("m0",), ("m5",)))]
    assert rate(ragged, names)["m0"].mu > rate(ragged, names)["m5"].mu


def test_conservative_score():
    assert Rating(30.0, 2.0).conservative() == 24.0


@pytest.mark.parametrize(
    ("contestants", "tiers"),
    [
        (("a", "b"), (("a",),)),
        (("a", "b"), (("a",), ("a", "b"))),
        (("a", "b"), (("a", "b"), ())),
        (("a", "a"), (("a",),)),
        ((), ()),
    ],
)
def test_an_impossible_vote_is_refused(contestants, tiers):
    with pytest.raises(ValueError, match=r"vote|tier"):
        Vote("u", contestants, tiers)


def test_a_partial_vote_says_nothing_inside_a_tier():
    names = ("a", "b", "c")
    tied, picked = (
        tabulate([Vote("u", names, (("a",), ("b", "c")), partial=partial)], names).wins
        for partial in (False, True)
    )
    assert tied.tolist() == [[0, 1, 1], [0, 0, 0.5], [0, 0.5, 0]]
    assert picked.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_tabulation_ignores_display_order_and_vote_order():
    names = ("a", "b", "c")
    one = [
        Vote("u1", ("a", "b", "c"), (("c",), ("a", "b"))),
        Vote("u0", ("a", "b"), (("b",), ("a",))),
    ]
    two = [
        Vote("u0", ("b", "a"), (("b",), ("a",))),
        Vote("u1", ("c", "b", "a"), (("c",), ("b", "a"))),
    ]
    left, right = tabulate(one, names), tabulate(two, names)
    assert np.array_equal(left.members, right.members)
    assert np.array_equal(left.outcome, right.outcome)
    assert left.wins.tolist() == [[0, 0.5, 0], [1.5, 0, 0], [1, 1, 0]]
