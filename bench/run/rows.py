"""Completing rows when a task has ended, and counting rows by status."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from quantarena.bench import machine
from quantarena.bench.plan.plan import STAMP
from quantarena.bench.run.executors import Outcome, Task
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell

_UNTIMED = "latency was not measured"
_OWN = "its process was changed for good"
_SHORT = "memory ran out with"
_INHERITED = "earlier work of this run, not this row, changed the process for good"


def complete(row: Row, seconds: float, stamp: str = "") -> Row:
    """The row with every field that the stages left empty when they ended early.

    Args:
        row: the row of the stages, or one without numbers.
        seconds: wall seconds of the task; those that no stage accounts for become ``other``.
        stamp: hash of the code that the plan was made with, kept among the row's keys.
    """
    now = datetime.now(UTC)
    accounted = sum(row.seconds.values())
    return replace(
        row,
        machine=row.machine or machine.fingerprint(),
        started=row.started or (now - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
        finished=row.finished or now.isoformat(timespec="seconds"),
        seconds={**row.seconds, "other": round(max(0.0, seconds - accounted), 3)},
        stage_keys={**row.stage_keys, STAMP: stamp} if stamp else row.stage_keys,
    )


def timed(task: Task, outcome: Outcome) -> Row:
    """The row of a timing task with its latency, or with a warning that says why it has none."""
    row = outcome.row if outcome.row and outcome.row.key == task.cell.key else task.row
    assert row is not None
    # An earlier attempt may have failed; the next run tries again, and its result counts.
    others = tuple(line for line in row.warnings if not line.startswith(_UNTIMED))
    if outcome.status is Status.OK:
        seconds = {**row.seconds, "time": round(outcome.seconds, 3)}
        return replace(row, seconds=seconds, warnings=others)
    return replace(row, warnings=(*others, f"{_UNTIMED}: {outcome.reason}"))


def untimed_why(row: Row) -> str:
    """Why an attempt to time a row has failed; empty where none has."""
    return next((line for line in row.warnings if line.startswith(_UNTIMED)), "")


def marked(row: Row, outcome: Outcome, inherited: Iterable[str] = ()) -> Row:
    """The row with what its outcome says of how it came about.

    That is a lost worker, a smaller batch, and each change to a process that cannot be undone.

    Args:
        row: the row.
        outcome: what it comes from; the changes that its own task made are in ``lasting``.
        inherited: changes of the run's process, which its children have too.
    """
    own = (f"{_OWN}: {change}" for change in outcome.lasting)
    batch, asked = outcome.task.batch, row.cell.budget.batch
    fewer = (f"{_SHORT} {asked} images together, so they were drawn {batch} at a time",)
    lines = dict.fromkeys((*row.warnings, *outcome.notes, *(fewer if batch else ()), *own))
    others = (f"{_INHERITED}: {c}" for c in inherited if f"{_OWN}: {c}" not in lines)
    return replace(row, warnings=tuple(dict.fromkeys((*lines, *others))))


def with_less(outcome: Outcome) -> Task | None:
    """The task once more with half the images drawn together, if memory ran out at first."""
    task, batch = outcome.task, outcome.task.cell.budget.batch // 2
    short = Status.OOM in (outcome.status, outcome.row.status if outcome.row else None)
    return replace(task, batch=batch) if short and batch and not task.batch else None


def counts(cells: tuple[Cell, ...], rows: Mapping[str, Row]) -> dict[str, int]:
    """Number of planned cells by the status of their row; ``missing`` have no row."""
    number: dict[str, int] = {str(status): 0 for status in Status} | {"missing": 0}
    for cell in cells:
        row = rows.get(cell.key)
        number[str(row.status) if row else "missing"] += 1
    return number


def counts_line(number: Mapping[str, int]) -> str:
    """The counts as text: ``24 ok, 1 skipped, 0 failed``; other statuses only if they occur."""
    always = [f"{number[name]} {name}" for name in ("ok", "skipped", "failed")]
    rest = [f"{number[name]} {name}" for name in ("timeout", "oom", "missing") if number[name]]
    return ", ".join(always + rest)


def cost_note(row: Row) -> str:
    """Core-seconds and memory of quantizing, in parentheses; empty if it took no time."""
    busy, peak = row.calibration.get("core_seconds", 0.0), row.calibration.get("peak_bytes", 0)
    if busy < 0.1:
        return ""
    return f" (quantized in {busy:.1f} core-s, {peak / 1e6:+.0f} MB)"


def latency_note(row: Row) -> str:
    """The latency in proportion to full precision, or why there is none."""
    latency: Any = row.latency
    if latency is None:
        return "no latency" + (f" ({row.warnings[-1]})" if row.warnings else "")
    return f"{latency.ratio:.2f} x fp ({latency.backend})"
