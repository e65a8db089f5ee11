import dataclasses
import math

import numpy as np
import pytest

from quantarena.leaderboard.ranking.board_ranking import BoardRanking
from quantarena.leaderboard.ranking.combined import combine
from quantarena.leaderboard.ranking.flow import Flow
from quantarena.leaderboard.ranking.read_results import BoardId
from quantarena.leaderboard.ranking.standings import Standing


def standing(method, log_loss, bits="w4a4"):
    factor = math.exp(log_loss)
    return Standing(
        f"{method}@{bits}", method, bits, factor, None, None, 0.5, 0.1, 0.2, 0.1, 1, 1, 1, 1, 1,
        (), 64, 64, Flow(1, (), 1, 1),
    )  # fmt: skip


def boards(table, bits="w4a4", policy="uniform"):
    """One board for each column of (N, W) log losses."""
    return [
        BoardRanking(
            BoardId(f"model{w}", policy, "paper", "x"),
            "lpips/alex-v0.1",
            1e-4,
            "",
            None,
            None,
            64,
            1,
            tuple(standing(f"m{n}", x, bits) for n, x in enumerate(column)),
            {},
        )
        for w, column in enumerate(np.asarray(table).T)
    ]


def drawn(rng, means, workloads=3, interaction=0.2):
    means = np.asarray(means)[:, None]
    return means + rng.normal(size=workloads) + interaction * rng.normal(
        size=(len(means), workloads)
    )  # fmt: skip


def test_what_wins_everywhere_leads():
    (board,) = combine(boards([[0.0, 0.0, 0.0], [0.7, 0.6, 0.8], [1.5, 1.4, 1.6]]))
    assert [s.method for s in board.standings] == ["m0", "m1", "m2"]
    assert [s.best_rank for s in board.standings] == [1, 2, 3]
    assert board.standings[1].factor == pytest.approx(math.exp(0.7))
    assert board.standings[1].by_workload == pytest.approx(np.exp([0.7, 0.6, 0.8]))
    assert board.standings[1].low < math.exp(0.6) < math.exp(0.8) < board.standings[1].high
    assert (board.standings[0].low, board.standings[0].high) == (1, 1)
    assert 1 < board.needed < math.exp(0.7)


def test_equal_methods_are_seldom_separated():
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(300):
        (board,) = combine(boards(drawn(rng, np.zeros(8))))
        false += any(s.best_rank > 1 for s in board.standings)
    assert false / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_the_interval_holds_what_a_new_workload_shows():
    rng = np.random.default_rng(1)
    held = tried = 0
    for _ in range(300):
        means = [0.0, 3.0, 3.5, 4.0]
        table = drawn(rng, means, workloads=4)
        (board,) = combine(boards(table[:, :3]))
        for s in board.standings[1:]:
            new = math.exp(table[int(s.method[1:]), 3] - table[0, 3])
            held += s.low <= new <= s.high
            tried += 1
    assert held / tried == pytest.approx(0.95, abs=0.03)


def test_only_what_every_workload_has_is_combined():
    three = boards(drawn(np.random.default_rng(2), np.zeros(4)))
    three[1] = dataclasses.replace(three[1], standings=three[1].standings[:3])
    (board,) = combine(three)
    assert {s.method for s in board.standings} == {"m0", "m1", "m2"}
    assert board.workloads == ("model0", "model1", "model2")


def test_too_little_is_not_combined():
    table = drawn(np.random.default_rng(3), np.zeros(4))
    assert combine(boards(table[:, :1])) == ()
    assert combine(boards(table[:2])) == ()
    assert combine([]) == ()
    twice = boards(table[:, :1]) * 2
    assert combine(twice) == (), "one workload at two budgets is no sample of workloads"


def test_widths_policies_and_targets_stay_apart():
    rng = np.random.default_rng(4)
    mixed = [
        *boards(drawn(rng, np.zeros(3))),
        *boards(drawn(rng, np.zeros(3)), policy="published"),
    ]
    found = combine(mixed)
    assert [(board.bits, board.title) for board in found] == [
        ("w4a4", ""),
        ("w4a4", "published policy"),
    ]


def test_equal_losses_are_equal():
    (board,) = combine(boards(np.zeros((3, 2))))
    assert all((s.best_rank, s.worst_rank, s.factor) == (1, 3, 1.0) for s in board.standings)
