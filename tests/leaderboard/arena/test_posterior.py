import numpy as np
import pytest

from quantarena.leaderboard.arena.posterior import agreement, corrected, mixed, weight_of
from quantarena.leaderboard.ranking.ksort import Rating, rate
from quantarena.leaderboard.ranking.votes import Vote

NAMES = [f"m{n}@w4a4" for n in range(4)]


@pytest.fixture
def people(make_event):
    return [make_event([[0], [1], [2], [3]], names=NAMES, judge="a" * 16) for _ in range(12)]


def test_weights_are_the_published_ones():
    assert weight_of(0.0) == 0.5
    assert weight_of(1.0) == pytest.approx(1 / (1 + np.exp(-5)))
    assert weight_of(-1.0) == pytest.approx(1 - weight_of(1.0))


def test_the_moments_of_a_mixture_are_exact():
    mu, var = np.array([20.0]), np.array([4.0])
    new_mu, new_var = np.array([26.0]), np.array([1.0])
    rng = np.random.default_rng(0)
    which = rng.random(400_000) < 0.7
    draws = np.where(which, rng.normal(26, 1, 400_000), rng.normal(20, 2, 400_000))
    mean, variance = mixed(mu, var, new_mu, new_var, 0.7)
    assert mean[0] == pytest.approx(draws.mean(), abs=0.02)
    assert variance[0] == pytest.approx(draws.var(), rel=0.01)


def test_agreement_is_of_the_contestants_that_people_know():
    known = {"a": Rating(30, 1), "b": Rating(20, 1), "c": Rating(10, 1)}
    order = Vote("p", ("a", "b", "c", "new"), (("new",), ("a",), ("b",), ("c",)))
    assert agreement(order, known) == pytest.approx(1.0)
    assert agreement(Vote("p", ("a", "b"), (("b",), ("a",))), known) == pytest.approx(-1.0)
    assert agreement(Vote("p", ("a", "new"), (("new",), ("a",))), known) is None
    assert agreement(Vote("p", ("a", "b"), (("a", "b"),)), known) is None


def test_a_program_that_disagrees_moves_people_s_board_less(people, make_event):
    def after(tiers):
        program = [
            make_event(tiers, names=NAMES, judge="p" * 16, judge_kind="vlm", judge_name="v/1")
            for _ in range(3)
        ]
        return {one.contestant: one for one in corrected([*people, *program])}

    before = {one.contestant: one for one in corrected(people)}
    agrees, opposes = after([[0], [1], [2], [3]]), after([[3], [2], [1], [0]])
    gap = before[NAMES[0]].mu - before[NAMES[3]].mu
    assert agrees[NAMES[0]].mu - agrees[NAMES[3]].mu > gap
    turned = opposes[NAMES[0]].mu - opposes[NAMES[3]].mu
    assert gap * 0.95 < turned < gap
    assert agrees[NAMES[0]].before == before[NAMES[0]].mu


def test_a_new_contestant_finds_its_place_through_programs(people, make_event):
    program = [
        make_event(
            [[0], [3], [1], [2]],
            names=[*NAMES[:3], "new@w4a4"],
            judge="p" * 16,
            judge_kind="automatic",
        )
        for _ in range(12)
    ]
    found = corrected([*people, *program])
    assert [one.contestant for one in found][:3] == [NAMES[0], "new@w4a4", NAMES[1]]
    assert found[1].before is None


def test_without_programs_it_is_the_rating_of_people(people):
    expected = rate([event.vote() for event in people], NAMES)
    for one in corrected(people):
        assert one.mu == pytest.approx(expected[one.contestant].mu)
        assert one.sigma == pytest.approx(expected[one.contestant].sigma)
    assert corrected([]) == ()
