"""Rows of timings that have ended, kept until the driver has them: it may die before it does."""

import contextlib
from pathlib import Path

from quantarena.bench.schema import Row
from quantarena.bench.store import Store

FOLDER = ".timed"


def leave(results: Path, row: Row) -> None:
    """Keep a timed row in the process that timed it."""
    Store(results / FOLDER).amend(row)


def taken(results: Path, row: Row) -> Row | None:
    """The row with the latency that a process has measured for it, None where none has.

    Args:
        results: folder of the run.
        row: the row as stored, without latency; a timing of an earlier attempt does not count.
    """
    found = Store(results / FOLDER).get(row.key)
    if found is None or found.latency is None:
        return None
    return found if _attempt(found) == _attempt(row) else None


def drop(results: Path, row: Row) -> None:
    """Forget a timed row, which is stored."""
    with contextlib.suppress(OSError):
        Store(results / FOLDER).path(row.key).unlink(missing_ok=True)


def _attempt(row: Row) -> tuple[object, ...]:
    return row.key, row.attempt, row.started, row.finished, row.stage_keys
