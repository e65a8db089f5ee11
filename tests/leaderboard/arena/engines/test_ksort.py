import numpy as np
import pytest

from quantarena.leaderboard.arena.engines.ksort import KSortMatchmaker, KSortStandings
from quantarena.leaderboard.arena.engines.protocols import Past
from quantarena.leaderboard.ranking.ksort import rate
from quantarena.leaderboard.ranking.matchmaking import next_match
from quantarena.leaderboard.ranking.votes import Vote, tabulate

NAMES = tuple("abcdef")


def votes(count, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        names = [str(name) for name in rng.permutation(NAMES)[:4]]
        order = sorted(names, key=lambda name: NAMES.index(name) + rng.normal(0, 1))
        made.append(Vote(f"p{n % 9}", tuple(names), tuple((name,) for name in order)))
    return made


@pytest.mark.parametrize("steps", [(0,), (7,), (0, 1, 2, 20), (20, 5)])
def test_kept_ratings_choose_what_fresh_ones_would(steps):
    past = votes(20)
    kept = KSortMatchmaker()
    for count in steps:
        now = past[:count]
        chosen = kept.next_set(Past("x", now), NAMES, size=4, seed=5)
        met = tabulate(now, NAMES).wins
        expected = next_match(NAMES, rate(now, NAMES), met + met.T, size=4, seed=5)
        assert chosen == expected


def test_a_vote_that_was_taken_back_is_forgotten():
    past = votes(12)
    kept = KSortMatchmaker()
    kept.next_set(Past("x", past), NAMES, size=4, seed=1)
    shorter = past[:3] + past[4:]
    fresh = KSortMatchmaker().next_set(Past("x", shorter), NAMES, size=4, seed=1)
    assert kept.next_set(Past("x", shorter), NAMES, size=4, seed=1) == fresh


def test_open_sets_count_as_met_so_that_voters_differ():
    matchmaker = KSortMatchmaker()
    first = matchmaker.next_set(Past("x", []), NAMES, size=3, seed=0)
    second = matchmaker.next_set(Past("x", [], [first]), NAMES, size=3, seed=0)
    assert second[0] not in first
    # They are not remembered: the set may never be answered.
    assert matchmaker.next_set(Past("x", []), NAMES, size=3, seed=0) == first


def test_boards_are_kept_apart():
    matchmaker = KSortMatchmaker()
    matchmaker.next_set(Past("x", votes(20)), NAMES, size=3, seed=0)
    fresh = KSortMatchmaker().next_set(Past("y", []), NAMES, size=3, seed=0)
    assert matchmaker.next_set(Past("y", []), NAMES, size=3, seed=0) == fresh


@pytest.mark.parametrize("names", [(), ("a",), ("a", "b")])
def test_few_contestants(names):
    chosen = KSortMatchmaker().next_set(Past("x", []), names, size=4, seed=0)
    assert sorted(chosen) == sorted(names)


def test_standings_do_not_depend_on_the_order_of_votes():
    past = votes(40)
    board = KSortStandings(resamples=50).board(past, NAMES)
    assert KSortStandings(resamples=50).board(past[::-1], NAMES) == board
    assert [line.contestant for line in board[:2]] == ["a", "b"]
    assert board[0].low <= board[0].mu <= board[0].high


def test_standings_without_votes_say_that_nothing_is_known():
    board = KSortStandings(resamples=20).board([], NAMES)
    assert [line.contestant for line in board] == list(NAMES)
    assert {line.place for line in board} == {1}
    assert all((line.best_rank, line.worst_rank, line.votes) == (1, 6, 0) for line in board)
    assert all(line.high - line.low > 30 for line in board)


def test_few_prompts_have_no_narrow_interval_and_the_unseen_come_last():
    past = [Vote("p0", ("c", "d"), (("d",), ("c",)))] * 3
    board = KSortStandings(resamples=20).board(past, NAMES)
    assert [line.contestant for line in board[:2]] == ["d", "c"]
    assert all(line.high - line.low > 30 for line in board)
