import random

import pytest

from quantarena.leaderboard.arena.events import DESTROYED, INTACT
from quantarena.leaderboard.arena.quality import first_share, passed, quality, relations

NAMES = [f"m{n}@w4a4" for n in range(6)]


@pytest.fixture
def vote_of(make_event):
    """A vote of a judge who sees the order m0 > m1 > ... through noise."""

    def made(rng, judge, noise, **changes):
        names = rng.sample(NAMES, 4)
        order = sorted(range(4), key=lambda at: NAMES.index(names[at]) + rng.gauss(0, noise))
        return make_event([[at] for at in order], names=names, judge=judge * 16, **changes)

    return made


def by_judge(events):
    return {one.judge[0]: one for one in quality(events)}


def test_a_careful_judge_agrees_and_one_who_does_not_look_does_not(vote_of):
    rng = random.Random(1)
    events = [vote_of(rng, judge, 0.7) for judge in "abc" for _ in range(40)]
    events += [vote_of(rng, "d", 1000.0, dwell_ms=300) for _ in range(40)]
    found = by_judge(events)
    assert found["a"].agreement.low > 0.5
    assert found["d"].agreement.high < 0.35
    assert found["a"].agreement.n == 40
    assert (found["a"].quick, found["d"].quick) == (0.0, 1.0)
    assert found["a"].first_wins.low < 0.5 < found["a"].first_wins.high


def test_influence_is_what_the_board_would_be_without_a_judge(vote_of, make_event):
    rng = random.Random(2)
    events = [vote_of(rng, judge, 0.5) for judge in "ab" for _ in range(15)]
    steady = by_judge(events)["a"].influence[0]
    assert steady.share == 0.5
    assert not steady.leader
    # One judge with many votes for the last contestant turns the board.
    rigged = [
        make_event(
            [[0], [1], [2], [3]], names=[NAMES[5], *rng.sample(NAMES[:5], 3)], judge="f" * 16
        )
        for _ in range(300)
    ]
    worst = by_judge([*events, *rigged])["f"].influence[0]
    assert worst.leader
    assert worst.moved >= 3
    assert worst.tau < steady.tau


def test_answers_to_a_set_that_was_asked_again(make_event):
    first = make_event([[0], [1], [2], [3]], image=1)
    same = make_event(
        [[3], [2], [1], [0]], names=[f"m{n}@w4a4" for n in (3, 2, 1, 0)], purpose="repeat", image=1
    )
    turned = make_event([[1], [0], [2], [3]], purpose="repeat", image=1)
    (found,) = quality([first, same, turned])
    assert found.retest.n == 2
    assert found.retest.mean == pytest.approx((1 + 5 / 6) / 2)
    assert found.votes == 1


def test_checks(make_event):
    def check(purpose, names, tiers):
        return make_event(tiers, names=names, purpose=purpose)

    gold = ["a", INTACT, DESTROYED]
    good = [
        check("gold-order", gold, [[1], [0], [2]]),
        check("gold-order", gold, [[1], [0, 2]]),
        check("gold-tie", ["a", "b", "a"], [[1], [0, 2]]),
    ]
    bad = [
        check("gold-order", gold, [[2], [1], [0]]),
        check("gold-order", gold, [[0], [1, 2]]),
        check("gold-tie", ["a", "b", "a"], [[0], [1, 2]]),
    ]
    assert [passed(event) for event in good + bad] == [True] * 3 + [False] * 3
    skipped = make_event([], names=gold, mode="skip", purpose="gold-order")
    (found,) = quality([*good, *bad, skipped])
    assert (found.checks, found.failed, found.skips, found.votes) == (6, 3, 1, 0)


def test_voids_and_skips_are_counted(make_event, make_void):
    one, two = make_event(), make_event()
    (found,) = quality([one, two, make_void(one)])
    assert (found.votes, found.voided) == (1, 1)
    assert found.agreement is None
    assert found.influence == ()


def test_relations_and_first_share(make_event):
    event = make_event([[1, 2], [0]], names=["b", "a", "c"])
    assert relations(event) == {("a", "b"): -1, ("a", "c"): 0, ("b", "c"): 1}
    assert first_share(event) == 0.0
    assert first_share(make_event([[0, 1]])) is None


def test_programs_are_compared_with_people_but_people_not_with_programs(vote_of):
    rng = random.Random(3)
    events = [vote_of(rng, "a", 0.5) for _ in range(20)]
    events += [vote_of(rng, "p", 0.5, judge_kind="automatic", judge_name="x/1") for _ in range(20)]
    found = by_judge(events)
    assert found["p"].agreement.n == 20
    assert found["p"].name == "x/1"
    assert found["a"].agreement is None
