import dataclasses
import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantarena.leaderboard.arena.events import (
    MOST_BYTES,
    BadEvent,
    check_answer,
    in_order,
    line,
    parse,
    schema,
    stamp,
    standing_votes,
)


def test_a_line_is_read_back_and_written_again_as_the_same_line(make_event, make_void):
    vote = make_event([[2], [0, 1], [3]])
    for event in (vote, make_void(vote)):
        assert parse(line(event)) == event
        assert line(parse(line(event))) == line(event)
        assert "\n" not in line(event)


def test_the_schema_takes_what_the_reader_takes(make_event, make_void):
    vote = make_event([[2], [0, 1], [3]])
    for event in (vote, make_void(vote)):
        jsonschema.validate(json.loads(line(event)), schema())
    broken = json.loads(line(vote)) | {"seed": -1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema())


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1.0},
        {"seed": -1},
        {"seed": True},
        {"id": "ABC"},
        {"id": "E4EAAAF2-D142-41B3-B3B1-1D3A7D2B0C55"},
        {"time": "2026-02-31T00:00:00.000Z"},
        {"time": "2026-02-21 00:00:00"},
        {"task": "beauty"},
        {"kind": "note"},
        {"version": 2},
        {"mode": "bad"},
        {"mode": "best", "tiers": [[0, 1], [2]]},
        {"mode": "skip"},
        {"tiers": [[0], [1]]},
        {"tiers": [[0], [1], [1]]},
        {"tiers": [[0, 1, 2, 3]]},
        {"tiers": [[], [0, 1, 2]]},
        {"tiers": [[0], [1], [9]]},
        {"shown": [{"contestant": "a", "sha256": "0" * 64}] * 3},
        {"shown": [{"contestant": "a", "sha256": "0" * 64}]},
        {"judge": "somebody@example.org"},
        {"extra": 1},
        {"page": "x" * 501},
        {"board": ""},
        {"board": "\x1b[2J"},
        {"judge_name": "a\nb"},
        {"unit": "\u202egnp"},
        {"board": "ends\n"},
    ],
)
def test_what_is_no_vote_is_refused_in_one_line(make_event, changes):
    text = json.dumps(json.loads(line(make_event([[2], [0], [1]]))) | changes)
    with pytest.raises(BadEvent) as fault:
        parse(text)
    assert fault.value.is_json
    assert len(str(fault.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 30_000, b"\xff\xfe", '{"a": NaN}', '{"kind": "\\ud800"}', "\ud800"]
)
def test_what_is_no_json_is_refused(text):
    with pytest.raises(BadEvent) as fault:
        parse(text)
    assert not fault.value.is_json or "NaN" in str(text)


def test_a_missing_field_is_named(make_event):
    plain = json.loads(line(make_event()))
    del plain["unit"]
    with pytest.raises(BadEvent, match="unit"):
        parse(json.dumps(plain))


def test_a_huge_text_is_refused_before_it_is_read():
    with pytest.raises(BadEvent, match="more than"):
        parse("[" + " " * MOST_BYTES)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(data):
    with pytest.raises(BadEvent):
        parse(data)


def test_answers_by_mode():
    check_answer("rank", [[2], [0, 1]], 3)
    check_answer("best", [[2], [0, 1]], 3)
    check_answer("bad", [[0, 1, 2]], 3)
    check_answer("skip", [], 3)
    for mode, tiers in [("rank", [[0]]), ("best", [[0, 1, 2]]), ("bad", [[0], [1, 2]])]:
        with pytest.raises(ValueError, match="tier"):
            check_answer(mode, tiers, 3)


def test_a_vote_becomes_the_ranking_s_vote(make_event):
    vote = make_event([[2], [0, 1]], names=["a", "b", "c"]).vote()
    assert vote.contestants == ("a", "b", "c")
    assert vote.tiers == (("c",), ("a", "b"))
    assert not make_event([], mode="skip", names=["a", "b"]).ranked
    assert not make_event(purpose="repeat").ranked


def test_voided_votes_stand_no_more(make_event, make_void):
    one, two = make_event(), make_event()
    assert standing_votes([one, two, make_void(one)]) == [two]
    # A void may come before its vote when logs are joined.
    assert standing_votes([make_void(one), one, two]) == [two]


def test_order_is_by_time_then_id(make_event):
    early = make_event(time=stamp(1.0e9))
    late = [make_event(time=stamp(1.7e9)) for _ in range(3)]
    expected = [early, *sorted(late, key=lambda event: event.id)]
    assert in_order([*late[::-1], early]) == expected


def test_events_are_frozen(make_event):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_event().mode = "bad"


def test_a_stamp_has_milliseconds_in_utc():
    assert stamp(0.0005) == "1970-01-01T00:00:00.000Z"
    assert stamp(1.8e9 + 0.25) == "2027-01-15T08:00:00.250Z"
