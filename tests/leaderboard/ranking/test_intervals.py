import time

import choix
import numpy as np
import pytest
from scipy.stats import kendalltau

from quantarena.leaderboard.ranking.bradley_terry import bradley_terry
from quantarena.leaderboard.ranking.intervals import estimate, separations, tie_groups
from quantarena.leaderboard.ranking.votes import Vote, tabulate


def simulate(skills, units, *, size=4, noise=1.0, rounds=1, seed=0, coarse=0.0):
    """Votes on noisy looks at planted skills; ``coarse`` > 0 makes ties."""
    rng = np.random.default_rng(seed)
    names = tuple(f"m{n:02d}" for n in range(len(skills)))
    votes = []
    for unit in range(units):
        look = np.asarray(skills) + noise * rng.normal(size=len(skills))
        if coarse:
            look = np.round(look / coarse) * coarse
        for _ in range(rounds):
            deal = rng.permutation(len(skills))
            for start in range(0, len(skills), size):
                seats = deal[start : start + size]
                if len(seats) < 2:
                    continue
                tiers = [
                    tuple(names[n] for n in seats if look[n] == value)
                    for value in sorted(set(look[seats]), reverse=True)
                ]
                votes.append(Vote(f"u{unit:04d}", tuple(names[n] for n in seats), tuple(tiers)))
    return names, votes


def spread_of(names, votes, **options):
    return estimate(tabulate(votes, names), **{"shuffles": 12, "resamples": 150} | options)


@pytest.mark.parametrize("size", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("coarse", [0.0, 1.5])
def test_planted_skills_come_back(size, coarse):
    skills = np.arange(8) * 0.7
    names, votes = simulate(skills, 40, size=size, coarse=coarse)
    spread = spread_of(names, votes)
    assert kendalltau(spread.mu, skills).statistic > 0.85
    assert np.all(np.isfinite(spread.samples))
    assert np.all(spread.sigma > 0)
    assert np.all(spread.low < spread.high)


def test_all_tied_stay_together():
    names = ("a", "b", "c", "d")
    votes = [Vote(f"u{n}", names, (names,)) for n in range(30)]
    spread = spread_of(names, votes)
    assert spread.mu == pytest.approx([25.0] * 4)
    assert not separations(spread).any()
    assert tie_groups(spread.mu, separations(spread)).tolist() == [1, 1, 1, 1]


def test_no_votes_and_one_contestant():
    for names in ((), ("a",), ("a", "b")):
        spread = spread_of(names, [])
        assert spread.mu.tolist() == [25.0] * len(names)
        assert not separations(spread).any()


def test_islands_are_never_ordered():
    names = ("a", "b", "c", "d")
    votes = [Vote(f"u{n}", ("a", "b"), (("a",), ("b",))) for n in range(20)]
    votes += [Vote(f"v{n}", ("c", "d"), (("c",), ("d",))) for n in range(20)]
    above = separations(spread_of(names, votes))
    assert above[0, 1]
    assert above[2, 3]
    assert not above[0, 3]
    assert not above[2, 1]


def test_five_unanimous_prompts_prove_nothing_six_do():
    names = ("a", "b")
    votes = [Vote(f"u{n}", names, (("a",), ("b",))) for n in range(6)]
    assert not separations(spread_of(names, votes[:5])).any()
    assert separations(spread_of(names, votes))[0, 1]


def test_deterministic_and_blind_to_vote_and_display_order():
    names, votes = simulate(np.arange(5) * 0.4, 20, coarse=0.5)
    rng = np.random.default_rng(9)
    mixed = [
        Vote(
            vote.unit,
            tuple(rng.permutation(vote.contestants).tolist()),
            tuple(tuple(rng.permutation(tier).tolist()) for tier in vote.tiers),
        )
        for vote in (votes[n] for n in rng.permutation(len(votes)))
    ]
    one, two = spread_of(names, votes), spread_of(names, mixed)
    assert np.array_equal(one.mu, two.mu)
    assert np.array_equal(one.samples, two.samples)


def test_new_names_change_no_more_than_shuffling_does():
    names, votes = simulate(np.arange(5) * 0.8, 40)
    new = dict(zip(names, ("z", "k", "a", "q", "c"), strict=True))
    renamed = [
        Vote(
            vote.unit,
            tuple(new[name] for name in vote.contestants),
            tuple(tuple(new[name] for name in tier) for tier in vote.tiers),
        )
        for vote in votes
    ]
    one = spread_of(names, votes, shuffles=40)
    two = spread_of(tuple(new.values()), renamed, shuffles=40)
    assert np.abs(one.mu - two.mu).max() < 0.25 * (one.high - one.low).min()
    assert np.array_equal(separations(one), separations(two))


def test_random_voters_separate_nobody():
    runs = 50
    false = 0
    for seed in range(runs):
        names, votes = simulate(np.zeros(6), 40, seed=seed)
        spread = spread_of(names, votes, shuffles=6, resamples=120, seed=seed)
        false += bool(separations(spread).any())
    # At a true rate of 5 % more than 6 of 50 happen with a chance of 1 %.
    assert false <= 6


def test_clear_differences_are_claimed():
    names, votes = simulate(np.arange(4) * 1.5, 60)
    above = separations(spread_of(names, votes))
    assert not np.triu(above, 1).any()
    assert all(above[n + 1, n] for n in range(3))


def test_intervals_cover_what_they_should():
    # Measured against the estimator's own mean over many repetitions: K-Sort's scale has no
    # other truth at a finite number of votes. K-Sort's sigma covers far less.
    skills = np.arange(5) * 0.5
    spreads = [
        spread_of(*simulate(skills, 40, size=5, seed=seed), shuffles=8, resamples=100, seed=seed)
        for seed in range(40)
    ]
    truth = np.mean([spread.mu for spread in spreads], axis=0)
    inside = [(spread.low <= truth) & (truth <= spread.high) for spread in spreads]
    assert 0.87 <= np.mean(inside) <= 0.995


def test_sigma_is_overconfident_on_correlated_votes():
    # Prompts matter: every vote on one prompt sees the same look, so votes are not independent.
    names, votes = simulate(np.zeros(8), 20, rounds=6)
    spread = spread_of(names, votes)
    assert np.mean(spread.high - spread.low) > 1.4 * np.mean(2 * 1.96 * spread.sigma)


def test_tie_groups_are_contiguous():
    mu = np.array([30.0, 29.0, 20.0, 19.0])
    above = np.zeros((4, 4), dtype=bool)
    above[0, 2] = above[0, 3] = above[1, 3] = True
    assert tie_groups(mu, above).tolist() == [1, 1, 2, 2]


def test_bradley_terry_agrees_with_choix():
    skills = np.arange(6) * 0.6
    names, votes = simulate(skills, 80)
    wins = tabulate(votes, names).wins
    ours = bradley_terry(wins, prior=1e-6)
    theirs = choix.ilsr_pairwise_dense(wins, alpha=1e-8)
    assert ours == pytest.approx(theirs, abs=1e-3)
    rankings = [[names.index(tier[0]) for tier in vote.tiers] for vote in votes]
    luce = choix.ilsr_rankings(6, rankings, alpha=1e-3)
    ksort = spread_of(names, votes).mu
    assert np.argsort(luce).tolist() == np.argsort(ksort).tolist() == np.argsort(ours).tolist()


@pytest.mark.parametrize("wins", [np.zeros((3, 3)), np.triu(np.ones((3, 3)), 1), np.zeros((1, 1))])
def test_bradley_terry_stays_finite(wins):
    strength = bradley_terry(wins)
    assert np.all(np.isfinite(strength))
    assert strength.sum() == pytest.approx(0, abs=1e-6)


def test_fast_enough_for_the_largest_board():
    names, votes = simulate(np.arange(20) * 0.2, 512)
    start = time.process_time()
    separations(estimate(tabulate(votes, names)))
    assert time.process_time() - start < 6
