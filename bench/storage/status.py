"""How a run is, from what lies in its store alone: rows, drivers' notes, and an estimate."""

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from quantarena.bench.schema import Row, Status
from quantarena.bench.storage.drivers import RUNNING, Driver, drivers, together
from quantarena.bench.storage.outlines import outlines
from quantarena.bench.store import Store


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How a run is.

    Attributes:
        cells: planned.
        counts: of their rows by status; ``missing`` have none, ``untimed`` are ok without latency.
        live: drivers that run, as far as this machine can tell.
        dead: drivers that ended without saying so.
        over: drivers that said so.
        seconds_left: estimate of the live drivers together; None without one.
    """

    cells: int
    counts: dict[str, int]
    live: tuple[Driver, ...]
    dead: tuple[Driver, ...]
    over: tuple[Driver, ...]
    seconds_left: float | None

    @property
    def state(self) -> str:
        """``running``, ``complete``, ``stopped`` (some cells are not done), or ``dead``."""
        if self.live:
            return "running"
        if not self.counts["missing"] and not self.counts["untimed"]:
            return "complete"
        newest = max((*self.dead, *self.over), key=lambda driver: driver.beat, default=None)
        return "dead" if newest is not None and newest in self.dead else "stopped"

    def to_dict(self, now: datetime) -> dict[str, Any]:
        """Plain data."""
        groups = {"live": self.live, "dead": self.dead, "over": self.over}
        notes = [
            {**asdict(driver), "is": group, "silent_seconds": round(driver.silent(now), 1)}
            for group, found in groups.items()
            for driver in found
        ]
        return {
            "state": self.state,
            "cells": self.cells,
            "counts": self.counts,
            "seconds_left": self.seconds_left,
            "drivers": notes,
        }


def run_status(store: Store, now: datetime | None = None) -> RunStatus:
    """The state of a results folder now. Nothing is written but an index that saves time."""
    now = now or datetime.now(UTC)
    rows = {row.key: row for row in outlines(store)}
    planned = store.read_planned()
    keys = [cell.key for cell in planned.cells] if planned else list(rows)
    notes = drivers(store.folder)
    live = tuple(note for note in notes if note.alive(now))
    dead = tuple(note for note in notes if note not in live and note.state == RUNNING)
    over = tuple(note for note in notes if note.state != RUNNING)
    left = {note.owner.token: note.seconds_left for note in live}
    return RunStatus(len(keys), _counts(keys, rows), live, dead, over, together(left))


def _counts(keys: list[str], rows: dict[str, Row]) -> dict[str, int]:
    found = Counter(str(rows[key].status) if key in rows else "missing" for key in keys)
    untimed = sum(
        1
        for key in keys
        if key in rows and rows[key].status is Status.OK and rows[key].latency is None
    )
    names = (*map(str, Status), "missing")
    return {name: found[name] for name in names} | {"untimed": untimed}
