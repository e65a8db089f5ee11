"""The log of an arena: one SQLite file to which events are only ever added.

Write-ahead logging with ``synchronous=FULL``: what was answered for is on disk. One thread writes.
It commits whatever waits together, so that many voters share the cost of one flush.
"""

import contextlib
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from quantarena.leaderboard.arena.events import Event, line, parse

T = TypeVar("T")
Clock = Callable[[], float]
APPLICATION = 0x51_41_56_31
"""SQLite's application id of these files: QAV1."""
VERSION = 1
MOST_TOGETHER = 256
"""Most jobs that share one commit."""
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL
);
CREATE TRIGGER events_stay BEFORE UPDATE ON events
  BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER events_remain BEFORE DELETE ON events
  BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
CREATE TABLE sets (
  id TEXT PRIMARY KEY, judge TEXT NOT NULL, expires REAL NOT NULL, event TEXT, body TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX open_sets ON sets (judge) WHERE event IS NULL;
"""


class LogError(ValueError):
    """A log that cannot be opened, read or written; one line says why and what to do."""


class Conflict(LogError):
    """Two different events with the same id."""


class Log:
    """An open log. ``close`` it, or use it as a context."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open a log.

        Args:
            path: the file.
            create: whether a file that does not exist is made.

        Raises:
            LogError: it does not exist, is no log, or cannot be opened.
        """
        self.path = path
        self.lost = 0
        """Number of commits that failed: what a job remembers from before may not be there."""
        if not create and not path.is_file():
            raise LogError(f"no votes in {path}: start with: quantarena vote RESULTS")
        self._connection = _opened(path)
        self._jobs: queue.SimpleQueue[tuple[Callable[..., Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._write, name="arena-log", daemon=True)
        self._thread.start()
        self.arena = self.meta("arena")
        """Name of this arena, 16 hex digits."""

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def meta(self, key: str) -> str:
        """A fact about the arena: ``arena`` (its name), ``salt`` or ``secret``."""
        rows = self.transact(
            lambda db: db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchall()
        ).result()
        if not rows:
            raise LogError(f"{self.path} has lost its {key}: it is damaged")
        return str(rows[0][0])

    def transact(self, job: Callable[[sqlite3.Connection], T]) -> "Future[T]":
        """Run a job on the writing thread; its result arrives when it is safely on disk.

        The changes of a job that raises are undone, and its future raises. A job sees what the
        jobs before it wrote.
        """
        future: Future[T] = Future()
        if not self._thread.is_alive():
            raise LogError(f"{self.path} is closed")
        self._jobs.put((job, future))
        return future

    def append(self, events: Iterable[Event]) -> int:
        """Add events, all or none; those that are there already add nothing.

        Returns:
            The number of new events. They are on disk.

        Raises:
            Conflict: another event has the id of one of them.
        """
        wanted = list(events)
        return self.transact(lambda db: sum(insert(db, event) for event in wanted)).result()

    def events(self) -> list[Event]:
        """All events in the order in which they came to this log."""
        return self.transact(lambda db: [event for _, event in newer(db, 0)]).result()

    def close(self) -> None:
        """Finish what waits, and close the file."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        self._connection.close()

    def _write(self) -> None:
        while (first := self._jobs.get()) is not None:
            batch = [first]
            ending = False
            with contextlib.suppress(queue.Empty):
                while len(batch) < MOST_TOGETHER:
                    job = self._jobs.get_nowait()
                    if job is None:
                        ending = True
                        break
                    batch.append(job)
            self._commit(batch)
            if ending:
                break
        # Whoever asked while the log was being closed is told so.
        with contextlib.suppress(queue.Empty):
            while True:
                if (late := self._jobs.get_nowait()) is not None:
                    late[1].set_exception(LogError(f"{self.path} is closed"))

    def _commit(self, batch: list[tuple[Callable[..., Any], Future[Any]]]) -> None:
        """Run jobs in one transaction; each future is answered after the commit."""
        db = self._connection
        answers: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            for job, future in batch:
                db.execute("SAVEPOINT job")
                try:
                    answers.append((future, job(db), None))
                except sqlite3.OperationalError:
                    # A full disk, say: no job of this batch can count on what it wrote.
                    raise
                except Exception as error:  # it belongs to whoever asked for the job
                    db.execute("ROLLBACK TO job")
                    answers.append((future, None, error))
                db.execute("RELEASE job")
            db.execute("COMMIT")
        except sqlite3.Error as error:
            self.lost += 1
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            broken = LogError(f"cannot write {self.path}: {error}")
            answers = [(future, None, broken) for _, future in batch]
        for future, value, fault in answers:
            if fault is None:
                future.set_result(value)
            else:
                future.set_exception(fault)


def insert(db: sqlite3.Connection, event: Event) -> bool:
    """Add an event; False where the same one is there already.

    Raises:
        Conflict: another event has its id.
    """
    text = line(event)
    found = db.execute("SELECT body FROM events WHERE id = ?", (event.id,)).fetchone()
    if found is None:
        db.execute("INSERT INTO events (id, body) VALUES (?, ?)", (event.id, text))
        return True
    if found[0] != text:
        raise Conflict(f"another event has the id {event.id}")
    return False


def newer(db: sqlite3.Connection, seq: int) -> list[tuple[int, Event]]:
    """Events that came after number ``seq``, with their numbers."""
    rows = db.execute("SELECT seq, body FROM events WHERE seq > ? ORDER BY seq", (seq,))
    return [(int(number), parse(body)) for number, body in rows]


def _opened(path: Path) -> sqlite3.Connection:
    """A connection to a log, which is made where there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not path.exists() or path.stat().st_size == 0
        if fresh:
            # The salt in it belongs to nobody else: private before the first byte.
            path.touch(mode=0o600)
        db = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=30, cached_statements=64
        )
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as error:
        raise LogError(f"{path} is no log of votes: {error}") from None
    except OSError as error:
        raise LogError(f"cannot open {path}: {error.strerror or error}") from None
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.execute("BEGIN IMMEDIATE")
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if empty and not application:
        for statement in _statements(_TABLES):
            db.execute(statement)
        facts = {"arena": secrets.token_hex(8), "salt": secrets.token_hex(32)}
        facts |= {"secret": secrets.token_hex(32), "made": repr(time.time())}
        db.executemany("INSERT INTO meta VALUES (?, ?)", facts.items())
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {VERSION}")
    elif application != APPLICATION:
        raise LogError(f"{path} is an SQLite file of another program: choose another --log")
    elif version != VERSION:
        raise LogError(f"{path} has version {version}, this program reads version {VERSION}")
    db.execute("COMMIT")
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise LogError(f"{path}: this file system has no write-ahead log: choose another --log")
    db.execute("PRAGMA synchronous = FULL")


def _statements(script: str) -> Iterable[str]:
    """The statements of a script; ``executescript`` would commit in between."""
    gathered = ""
    for part in script.splitlines(keepends=True):
        gathered += part
        if sqlite3.complete_statement(gathered):
            yield gathered
            gathered = ""
