import numpy as np
import pytest
from scipy.stats import kendalltau

from quantarena.leaderboard.ranking.ksort import Rating, rate
from quantarena.leaderboard.ranking.matchmaking import next_match
from quantarena.leaderboard.ranking.votes import Vote

NAMES = tuple("abcdef")


def everyone_met(count, times=10):
    return times * (1 - np.eye(count))


def test_near_opponents_are_chosen_not_distant_ones():
    ratings = {name: Rating(10.0 + 8 * n, 1.0) for n, name in enumerate(NAMES)}
    met = everyone_met(6)
    met[0, 1:] = met[1:, 0] = 9
    assert next_match(NAMES, ratings, met, size=2) == ("a", "b")
    assert next_match(NAMES, ratings, met, size=3) == ("a", "b", "c")


def test_the_printed_sign_seeks_the_most_different():
    ratings = {name: Rating(10.0 + 8 * n, 1.0) for n, name in enumerate(NAMES)}
    met = everyone_met(6)
    met[0, 1:] = met[1:, 0] = 9
    assert next_match(NAMES, ratings, met, size=3, printed=True) == ("a", "f", "e")


def test_pivot_is_the_least_compared():
    ratings = dict.fromkeys(NAMES, Rating(25.0, 5.0))
    met = everyone_met(6)
    met[3] = met[:, 3] = 1
    met[3, 3] = 0
    assert next_match(NAMES, ratings, met)[0] == "d"


def test_an_unmet_opponent_comes_first():
    ratings = {name: Rating(10.0 + 8 * n, 1.0) for n, name in enumerate(NAMES)}
    met = everyone_met(6)
    met[0, 5] = met[5, 0] = 0
    assert "f" in next_match(NAMES, ratings, met, size=2)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_contestants(count):
    names = NAMES[:count]
    ratings = dict.fromkeys(names, Rating(25.0, 5.0))
    match = next_match(names, ratings, np.zeros((count, count)))
    assert sorted(match) == sorted(names)


def test_it_finds_planted_skills():
    count = 10
    names = tuple(f"m{n}" for n in range(count))
    rng = np.random.default_rng(3)
    met = np.zeros((count, count))
    votes = []
    for turn in range(120):
        match = next_match(names, rate(votes, names), met, seed=turn)
        seen = {name: 0.6 * int(name[1:]) + rng.normal() for name in match}
        order = sorted(match, key=lambda name: -seen[name])
        votes.append(Vote(f"u{turn}", match, tuple((name,) for name in order)))
        places = [int(name[1:]) for name in match]
        met[np.ix_(places, places)] += 1
        np.fill_diagonal(met, 0)
    ratings = rate(votes, names)
    tau = kendalltau([ratings[name].mu for name in names], range(count)).statistic
    assert tau > 0.8
    assert met.sum(axis=1).min() > 0.5 * met.sum(axis=1).max()
