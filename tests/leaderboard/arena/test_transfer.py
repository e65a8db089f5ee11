import random

import pytest

from quantarena.leaderboard.arena.engines.ksort import KSortStandings
from quantarena.leaderboard.arena.events import line
from quantarena.leaderboard.arena.log import Conflict, Log, LogError
from quantarena.leaderboard.arena.replay import document, replay
from quantarena.leaderboard.arena.transfer import jsonl, merged, read_events, write_jsonl

STANDINGS = KSortStandings(resamples=40)


@pytest.fixture
def votes(make_event):
    rng = random.Random(0)
    made = []
    for _ in range(30):
        order = rng.sample(range(4), 4)
        made.append(make_event([[n] for n in order], judge=rng.choice("abc") * 16))
    return made


def test_export_and_import_give_equal_bytes_and_an_equal_board(tmp_path, votes, make_void):
    events = [*votes, make_void(votes[3])]
    with Log(tmp_path / "one.sqlite") as log:
        log.append(events[::-1])
    assert write_jsonl(tmp_path / "one.jsonl", read_events(tmp_path / "one.sqlite")) == 31
    with Log(tmp_path / "two.sqlite") as log:
        log.append(read_events(tmp_path / "one.jsonl"))
        assert log.append(read_events(tmp_path / "one.jsonl")) == 0
    one, two = (read_events(tmp_path / f"{name}.sqlite") for name in ("one", "two"))
    assert jsonl(one) == jsonl(two) == (tmp_path / "one.jsonl").read_text()
    assert document(replay(one, STANDINGS)) == document(replay(two, STANDINGS))


def test_logs_of_several_arenas_merge_in_any_order(votes):
    parts = [votes[:12], votes[8:20], votes[20:]]
    whole = document(replay(votes, STANDINGS))
    assert document(replay(merged(parts), STANDINGS)) == whole
    assert document(replay(merged(parts[::-1]), STANDINGS)) == whole
    assert merged(parts) == merged(parts[::-1])
    assert len(merged(parts)) == 30


def test_a_merge_of_two_different_events_with_one_id_is_refused(votes, make_event):
    with pytest.raises(Conflict, match=votes[0].id):
        merged([votes, [make_event(id=votes[0].id)]])


def test_a_broken_line_is_named_and_nothing_is_read(tmp_path, votes):
    path = tmp_path / "v.jsonl"
    path.write_text(f"{line(votes[0])}\n\n{line(votes[1])[:-4]}\n")
    with pytest.raises(LogError, match=r"v\.jsonl, line 3: no event"):
        read_events(path)
    with pytest.raises(LogError, match="cannot read"):
        read_events(tmp_path / "none.jsonl")


def test_a_replay_says_what_it_left_out(votes, make_event, make_void):
    extra = [
        make_event([], mode="skip", names=["m0@w4a4", "m1@w4a4"]),
        make_event(purpose="repeat"),
        make_event(purpose="gold-tie", names=["x", "x"]),
        make_event(judge_kind="vlm"),
        make_void(votes[0]),
    ]
    (board,) = replay([*votes, *extra], STANDINGS)
    assert board.left_out == {
        "asked again": 1,
        "checks": 1,
        "skipped": 1,
        "taken back": 1,
        "vlm judges": 1,
    }
    assert (board.votes, board.views, board.judges, board.arenas) == (29, 116, 3, 1)
    assert document(replay([*votes[1:]], STANDINGS)).count("mu") == 4
    both = replay([*votes, *extra], STANDINGS, kinds=frozenset({"human", "vlm"}))
    assert both[0].votes == 30


def test_tasks_and_boards_are_never_blended(votes, make_event):
    other = [make_event(task="preference"), make_event(board="other/uniform/paper/123456")]
    boards = replay([*votes, *other], STANDINGS)
    assert [(b.board[:5], b.task, b.votes) for b in boards] == [
        ("emoji", "fidelity", 30),
        ("emoji", "preference", 1),
        ("other", "fidelity", 1),
    ]


def test_an_empty_log_has_no_board():
    assert replay([], STANDINGS) == ()
    assert jsonl([]) == ""
