"""Caps of votes, and votes that their judge takes back."""

import uuid
from http import HTTPStatus

import pytest

from quantarena.leaderboard.arena.events import WithdrawEvent, line, parse, standing_votes
from quantarena.leaderboard.arena.sets import Refused


def refused(future):
    with pytest.raises(Refused) as fault:
        future.result()
    return fault.value.status


@pytest.fixture
def vote(make_answer):
    """Lets a judge answer the next set; returns the event."""

    def cast(desk, judge):
        return desk.answer(judge, make_answer(desk.issue(judge).result())).result().event

    return cast


def new_id():
    return str(uuid.uuid4())


def test_a_judge_casts_no_more_votes_than_one_may(open_desk, ann, bob, make_answer, vote):
    desk = open_desk(most_votes=3)
    vote(desk, ann)
    vote(desk, ann)
    last = desk.issue(ann).result()
    assert refused(desk.issue(ann, [last.id])) is HTTPStatus.FORBIDDEN, "it would be one too many"
    desk.answer(ann, make_answer(last)).result()
    assert refused(desk.issue(ann)) is HTTPStatus.FORBIDDEN
    vote(desk, bob)


def test_skips_are_no_votes_and_a_vote_that_was_taken_back_is_one(
    open_desk, ann, make_answer, vote
):
    desk = open_desk(most_votes=2)
    desk.answer(ann, make_answer(desk.issue(ann).result(), (), mode="skip")).result()
    first = vote(desk, ann)
    assert desk.withdraw(ann, first.id, new_id()).result()
    vote(desk, ann)
    assert refused(desk.issue(ann)) is HTTPStatus.FORBIDDEN


def test_a_lower_limit_refuses_a_set_that_is_out_already(open_desk, ann, make_answer, vote):
    held = open_desk().issue(ann).result()
    desk = open_desk()
    vote(desk, ann)
    again = desk.issue(ann).result()
    assert again.id != held.id
    strict = open_desk(most_votes=1)
    assert refused(strict.answer(ann, make_answer(again))) is HTTPStatus.FORBIDDEN


def test_the_latest_vote_is_taken_back_by_an_event(open_desk, log, ann, bob, vote):
    desk = open_desk()
    first = vote(desk, ann)
    second = vote(desk, ann)
    name = new_id()
    assert refused(desk.withdraw(ann, first.id, new_id())) is HTTPStatus.CONFLICT
    assert refused(desk.withdraw(bob, second.id, new_id())) is HTTPStatus.FORBIDDEN
    assert refused(desk.withdraw(ann, new_id(), new_id())) is HTTPStatus.NOT_FOUND
    assert refused(desk.withdraw(ann, second.id, first.id)) is HTTPStatus.CONFLICT
    before = len(log.events())
    assert desk.withdraw(ann, second.id, name).result() is True
    assert desk.withdraw(ann, second.id, name).result() is False, "a reply may be lost on its way"
    assert refused(desk.withdraw(ann, second.id, new_id())) is HTTPStatus.CONFLICT
    events = log.events()
    assert len(events) == before + 1
    assert second in events, "the vote itself stays"
    assert events[-1] == WithdrawEvent(name, events[-1].time, log.arena, ann.id, second.id)
    assert standing_votes(events) == [first]
    assert [v.id for v in desk.memory.own[ann.id]] == [first.id]
    assert parse(line(events[-1])) == events[-1]


def test_only_the_judge_of_a_vote_takes_it_back_in_any_log(make_event):
    vote = make_event(judge="a" * 16)

    def back(judge):
        return WithdrawEvent(new_id(), vote.time, vote.arena, judge, vote.id)

    assert standing_votes([vote, back("b" * 16)]) == [vote]
    assert standing_votes([back("a" * 16), vote]) == []
