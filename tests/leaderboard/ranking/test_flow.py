"""Ranks with each run alone and with each prompt left out, against the plain way to find them."""

import numpy as np

from quantarena.leaderboard.ranking.flow import flows


def place(means):
    return [1 + int(sum(other < mean for other in means)) for mean in means]


def drawn(seed=0, count=6, prompts=8, runs=3):
    rng = np.random.default_rng(seed)
    units = tuple(f"p{n % prompts}" for n in range(prompts * runs))
    seeds = tuple(n // prompts for n in range(prompts * runs))
    return rng.normal(size=(count, prompts * runs)), units, seeds


def test_as_if_each_had_been_ranked_by_itself():
    scores, units, runs = drawn()
    found = flows(scores, units, runs)
    assert [flow.whole for flow in found] == place(scores.mean(axis=1))
    for number, seed in enumerate(sorted(set(runs))):
        here = np.array(runs) == seed
        assert [flow.by_run[number] for flow in found] == place(scores[:, here].mean(axis=1))
    left = [place(scores[:, np.array(units) != unit].mean(axis=1)) for unit in set(units)]
    assert [flow.left_best for flow in found] == [min(ranks) for ranks in zip(*left, strict=True)]
    assert [flow.left_worst for flow in found] == [max(ranks) for ranks in zip(*left, strict=True)]
    assert any(flow.left_best != flow.left_worst for flow in found), "else this checks nothing"


def test_one_prompt_decides_and_is_found():
    scores = np.zeros((2, 10))
    scores[0, 3], scores[1] = -9.0, -0.5
    ahead, behind = flows(scores, tuple(f"p{n}" for n in range(10)), (0,) * 10)
    assert (ahead.whole, ahead.left_best, ahead.left_worst) == (1, 1, 2)
    assert (behind.whole, behind.left_best, behind.left_worst) == (2, 1, 2)
    assert ahead.by_run == ()


def test_absent_images_equal_scores_and_a_single_prompt():
    scores, units, runs = drawn(count=3)
    scores[1] = scores[0]
    scores[2, np.array(runs) == 1] = np.nan
    found = flows(scores, units, runs)
    assert found[0] == found[1]
    assert found[2].by_run[1] is None
    alone = flows(np.array([[2.0, 2.0], [1.0, 1.0]]), ("p", "p"), (0, 0))
    assert [(flow.left_best, flow.left_worst) for flow in alone] == [(2, 2), (1, 1)]
