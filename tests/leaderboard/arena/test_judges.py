import re

import pytest

from quantarena.leaderboard.arena.judges import (
    JudgeError,
    PixelJudge,
    Question,
    Rate,
    ask,
    joined,
    judge_id,
    load,
)
from quantarena.leaderboard.arena.posterior import corrected


class Time:
    def __init__(self):
        self.now, self.naps = 0.0, []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.naps.append(seconds)
        self.now += seconds

    def rate(self, per_minute=0.0):
        return Rate(per_minute, self.clock, self.sleep)


class Scripted:
    """Answers in the order shown; fails at the calls whose numbers are given."""

    name, kind = "scripted/1", "automatic"

    def __init__(self, fails=(), kind="automatic", tiers=None):
        self.calls, self.fails, self.kind, self.tiers = [], set(fails), kind, tiers

    def order(self, question):
        self.calls.append(question)
        if len(self.calls) in self.fails:
            raise ConnectionError("no\nroute")
        return self.tiers or [[n] for n in range(len(question.images))]


def test_a_judge_sees_pixels_and_no_names(open_desk):
    judge = Scripted()
    desk = open_desk()
    assert ask(judge, desk, 3, Time().rate()) == 3
    text = repr(judge.calls[0])
    assert isinstance(judge.calls[0], Question)
    assert judge.calls[0].images[0].startswith(b"\x89PNG")
    assert not re.search("rtn|q_diffusion|steady|w4a4", text)
    events = desk.log.events()
    assert {(e.judge_kind, e.judge_name) for e in events} == {("automatic", "scripted/1")}
    assert {e.judge for e in events} == {judge_id(desk.log.meta("salt"), "scripted/1")}


def test_it_goes_on_where_it_stopped(open_desk, log):
    broken = Scripted(fails={4, 5, 6})
    with pytest.raises(JudgeError, match="scripted/1 failed: ConnectionError: no route"):
        ask(broken, open_desk(), 10, Time().rate())
    assert len(log.events()) == 3
    judge = Scripted()
    assert ask(judge, open_desk(), 10, Time().rate()) == 10
    # The set that was out when it stopped is the first that is asked now.
    assert judge.calls[0] == broken.calls[3]
    assert len(judge.calls) == 7
    assert ask(Scripted(), open_desk(), 10, Time().rate()) == 10
    assert len(log.events()) == 10


def test_a_call_that_fails_once_is_tried_again(open_desk):
    time = Time()
    judge = Scripted(fails={2})
    assert ask(judge, open_desk(), 3, time.rate()) == 3
    assert len(judge.calls) == 4
    assert judge.calls[1] == judge.calls[2]
    assert time.naps == [1.0]


@pytest.mark.parametrize("tiers", [[[0]], [[0, 0], [1, 2, 3]], "abcd", [[0.5]], 7])
def test_answers_that_are_none_are_failures(open_desk, tiers):
    with pytest.raises(JudgeError, match="failed"):
        ask(Scripted(tiers=tiers), open_desk(), 3, Time().rate())


def test_the_rate_is_kept_over_failures_and_both_ways(open_desk):
    time = Time()
    judge = Scripted(kind="vlm")
    ask(judge, open_desk(), 5, time.rate(30))
    assert len(judge.calls) == 10
    assert time.now == pytest.approx(9 * 2.0)


def test_a_vlm_is_asked_both_ways_and_its_disagreements_are_ties(open_desk):
    judge = Scripted(kind="vlm")
    desk = open_desk()
    ask(judge, desk, 1, Time().rate())
    one, two = judge.calls
    assert two.images == one.images[::-1]
    # It prefers whatever is shown first: nothing is left of that.
    assert desk.log.events()[0].tiers == ((0, 1, 2, 3),)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([[0], [1], [2]], [[0], [1], [2]], ((0,), (1,), (2,))),
        ([[0], [1], [2]], [[1], [0], [2]], ((0, 1), (2,))),
        ([[0], [1], [2]], [[2], [1], [0]], ((0, 1, 2),)),
        ([[0, 1], [2]], [[0], [1], [2]], ((0, 1), (2,))),
        ([[0], [1], [2], [3]], [[0], [2], [1], [3]], ((0,), (1, 2), (3,))),
        ([[0, 1, 2]], [[0], [1], [2]], ((0, 1, 2),)),
    ],
)
def test_two_answers_as_one(one, other, expected):
    assert joined(one, other) == expected
    assert joined(other, one) == expected


def test_nothing_is_asked_twice_and_what_is_left_is_said(open_desk, make_results, make_grid,
                                                         tmp_path):  # fmt: skip
    folder = tmp_path / "r"
    plan = make_grid(images=3, workloads=("synthetic-shapes",), bits=("w4a4",))
    make_results(folder, plan=plan, broken=False)
    desk = open_desk(folder, size=3)
    judge = Scripted()
    # Three contestants on three prompts: there are three sets, and no fourth.
    assert ask(judge, desk, 50, Time().rate()) == 3
    assert len(judge.calls) == 3


def test_the_pixel_judge_orders_by_distance(open_desk):
    desk = open_desk()
    ask(PixelJudge(), desk, 30, Time().rate())
    board = desk.catalogue.scenes[0].board
    events = [event for event in desk.log.events() if event.board == board]
    names = [one.contestant.split("@")[1] for one in corrected(events)]
    assert names[0] == "w8a8"
    assert names[-1] == "w4a4"


def test_the_pixel_judge_needs_a_reference(open_desk):
    with pytest.raises(JudgeError, match="reference"):
        ask(PixelJudge(), open_desk(task="preference", reference=False), 1, Time().rate())


def test_judges_are_loaded_from_files_and_modules(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "class Mine:\n    name = 'mine/1'\n    kind = 'vlm'\n"
        "    def order(self, question):\n        return [[0]]\n"
        "class Bare:\n    name = 'bare'\n"
    )
    assert load(f"{path}:Mine").name == "mine/1"
    assert load("pixels").name == "pixels/1"
    assert load("quantarena.leaderboard.arena.judges:PixelJudge").name == "pixels/1"
    for wrong in ("nobody", f"{path}:None", f"{path}:Bare", "no.such:X", f"{tmp_path}/no.py:X"):
        with pytest.raises(JudgeError) as fault:
            load(wrong)
        assert len(str(fault.value).splitlines()) == 1
