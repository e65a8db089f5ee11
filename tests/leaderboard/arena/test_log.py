import json
import sqlite3
import threading

import pytest

from quantarena.leaderboard.arena.events import line
from quantarena.leaderboard.arena.log import Conflict, Log, LogError, insert, newer


def test_events_are_there_after_reopening(tmp_path, make_event):
    events = [make_event() for _ in range(3)]
    with Log(tmp_path / "v.sqlite") as log:
        assert log.append(events) == 3
        arena = log.arena
    with Log(tmp_path / "v.sqlite", create=False) as log:
        assert log.events() == events
        assert log.arena == arena


def test_the_same_event_counts_once(log, make_event):
    event = make_event()
    assert [log.append([event]) for _ in range(3)] == [1, 0, 0]
    assert log.append([event, event]) == 0
    assert log.events() == [event]


def test_another_event_with_the_same_id_is_a_conflict_and_adds_nothing(log, make_event):
    event = make_event()
    log.append([event])
    other = make_event([[0], [1]], id=event.id)
    with pytest.raises(Conflict):
        log.append([make_event(), other])
    assert log.events() == [event]


def test_events_can_be_neither_changed_nor_deleted(log, make_event):
    log.append([make_event()])
    for statement in ("UPDATE events SET body = '{}'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            log.transact(lambda db, sql=statement: db.execute(sql)).result()
    assert len(log.events()) == 1


def test_the_file_is_in_wal_mode_and_fully_synchronous(log):
    def pragmas(db):
        return [
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        ]

    assert log.transact(pragmas).result() == ["wal", 2]


def test_the_file_is_private_because_its_salt_is(log):
    assert log.path.stat().st_mode & 0o077 == 0
    assert log.meta("salt") != log.meta("secret")


def test_a_job_that_fails_undoes_itself_and_no_other(log, make_event):
    good, bad = make_event(), make_event()
    gate = threading.Event()
    # The first job holds the writer, so that the others share one commit.
    log.transact(lambda db: gate.wait(10))

    def failing(db):
        insert(db, bad)
        raise KeyError("broken")

    kept = log.transact(lambda db: insert(db, good))
    lost = log.transact(failing)
    gate.set()
    assert kept.result()
    with pytest.raises(KeyError):
        lost.result()
    assert log.events() == [good]
    assert log.lost == 0


def test_jobs_that_wait_share_a_commit(log, make_event):
    commits = []
    log.transact(lambda db: db.set_trace_callback(commits.append)).result()
    gate = threading.Event()
    log.transact(lambda db: gate.wait(10))
    events = [make_event() for _ in range(50)]
    futures = [log.transact(lambda db, e=event: insert(db, e)) for event in events]
    commits.clear()
    gate.set()
    assert all(future.result() for future in futures)
    assert sum("COMMIT" in statement for statement in commits) <= 2


def test_a_commit_that_fails_fails_every_job_in_it(log, make_event):
    def spoil(db):
        insert(db, make_event())
        db.execute("ROLLBACK")

    with pytest.raises(LogError, match="cannot write"):
        log.transact(spoil).result()
    assert log.lost == 1
    assert log.events() == []


def test_a_full_disk_is_said_and_a_later_vote_is_kept(log, make_event):
    def room(pages):
        return log.transact(
            lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0]
        ).result()

    most = room(1_000_000)
    room(1)  # SQLite makes it the present size
    events = [make_event(page="x" * 400) for _ in range(60)]
    with pytest.raises(LogError, match="full"):
        log.append(events)
    assert log.events() == []
    assert log.lost == 1
    room(most)
    assert log.append(events) == 60


def test_newer_events_only(log, make_event):
    events = [make_event() for _ in range(4)]
    log.append(events)
    assert log.transact(lambda db: newer(db, 2)).result() == [(3, events[2]), (4, events[3])]


def test_two_processes_may_write_one_file(log, make_event):
    mine, theirs = make_event(), make_event()
    with Log(log.path) as other:
        other.append([theirs])
        log.append([mine])
        assert other.events() == log.events() == [theirs, mine]


def test_a_closed_log_says_so(tmp_path):
    log = Log(tmp_path / "v.sqlite")
    log.close()
    with pytest.raises(LogError, match="closed"):
        log.transact(lambda db: None)


def test_what_is_no_log_is_refused_in_one_line(tmp_path):
    text = tmp_path / "text.sqlite"
    text.write_text("hello " * 1000)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE t (x)")
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (text, foreign, folder):
        with pytest.raises(LogError) as fault:
            Log(path)
        assert len(str(fault.value).splitlines()) == 1
    with pytest.raises(LogError, match="start with"):
        Log(tmp_path / "none.sqlite", create=False)
    assert not (tmp_path / "none.sqlite").exists()


def test_a_log_of_a_later_version_is_refused(tmp_path):
    Log(tmp_path / "v.sqlite").close()
    with sqlite3.connect(tmp_path / "v.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(LogError, match="version 99"):
        Log(tmp_path / "v.sqlite")


def test_bodies_are_the_lines_of_the_events(log, make_event):
    event = make_event()
    log.append([event])
    bodies = log.transact(lambda db: db.execute("SELECT body FROM events").fetchall()).result()
    assert bodies == [(line(event),)]
    assert json.loads(bodies[0][0])["id"] == event.id
