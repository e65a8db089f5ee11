"""The run: shared stages once, cells fanned out, latency alone afterwards, rows as they come.

Only this module writes rows, and only in the process that the user started. No torch import.
"""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from quantarena.bench import machine
from quantarena.bench.errors import UserError
from quantarena.bench.plan.estimate import SHARED, Rates, Todo, remaining_seconds
from quantarena.bench.plan.plan import STAMP, Fan, Plan, minutes, needs_timing
from quantarena.bench.run.executors import (
    Executor,
    Listener,
    LocalExecutor,
    Outcome,
    Setting,
    Task,
)
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.store import Store

LEAST_TIMEOUT = 1800.0
"""Seconds that every cell gets, however short its estimate."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run, beyond what the plan says.

    Attributes:
        cache: folder of cached stages.
        stages: module that does the work.
        plugins: plug-in files, as absolute paths.
        prefer_plugin: whether a plug-in wins over a built-in of the same name.
        timeout: seconds a cell may take; None gives eight times its estimate, at least half an
            hour; 0 is no limit.
        force: a failed attempt may replace an ok row.
    """

    cache: Path
    stages: str
    plugins: tuple[str, ...] = ()
    prefer_plugin: bool = False
    timeout: float | None = None
    force: bool = False


@dataclass(slots=True)
class Run:
    """One run of a plan; ``execute`` is its only use."""

    plan: Plan
    store: Store
    options: Options
    reporter: Reporter
    history: tuple[Row, ...] = ()
    _rows: dict[str, Row] = field(default_factory=dict)
    _shared: dict[str, float] = field(default_factory=dict)
    _began: dict[Task, float] = field(default_factory=dict)
    _over: set[tuple[str, str]] = field(default_factory=set)

    def execute(self) -> None:
        """Do what the plan has left; every row is on disk when this returns or is interrupted.

        Raises:
            UserError: the disk, or a model that none of the cells can do without.
            KeyboardInterrupt: after the workers were stopped.
        """
        self._rows = {row.key: row for row in self.store.rows()}
        try:
            if self.plan.todo.cells:
                self._fan_out()
            self._time()
        finally:
            self.reporter.close()

    def _fan_out(self) -> None:
        todo = self.plan.todo
        blocked: dict[str, list[Cell]] = {}
        for cell in todo.cells:
            blocked.setdefault(cell.shared_key, []).append(cell)
        ready = deque(Task("prepare", cell) for cell in todo.shared)
        self.reporter.open(len(todo.shared) + len(todo.cells) + len(todo.untimed))
        executor = self._executor(self.plan.fan)
        try:
            while ready or self._began:
                while ready and len(self._began) < executor.slots:
                    task = ready.popleft()
                    self._began[task] = time.monotonic()
                    executor.start(task)
                    self._listen(task, "starting", 0, 1)
                outcome = executor.wait()
                del self._began[outcome.task]
                if outcome.task.kind == "cell":
                    self._keep(outcome)
                    continue
                cells = blocked.pop(outcome.task.cell.shared_key)
                if outcome.status is Status.OK:
                    self._shared[outcome.task.cell.shared_key] = round(outcome.seconds, 3)
                    self._say(outcome.task, f"shared stages, {minutes(outcome.seconds)}")
                    ready.extend(Task("cell", cell) for cell in self._ordered(cells))
                else:
                    self._cannot_prepare(outcome, cells, others=bool(blocked))
        except KeyboardInterrupt:
            self.reporter.say("stopping")
            raise
        finally:
            executor.close()
            self._began.clear()

    def _cannot_prepare(self, outcome: Outcome, cells: list[Cell], *, others: bool) -> None:
        """Without shared stages their cells fail; a user's mistake ends a run that has no more."""
        if outcome.user_error and not others and not self._over:
            raise UserError(outcome.reason)
        self._say(outcome.task, f"shared stages {outcome.status}: {outcome.reason}")
        for cell in cells:
            reason = f"shared stages: {outcome.reason}"
            self._keep(replace(outcome, task=Task("cell", cell), reason=reason))

    def _ordered(self, cells: list[Cell]) -> list[Cell]:
        """Longest first when several run at once, so that no worker is left with a long one."""
        if self.plan.fan.workers == 1:
            return cells
        rates = self._rates()
        return sorted(cells, key=rates.cell_seconds, reverse=True)

    def _keep(self, outcome: Outcome) -> None:
        """Write the row of a cell that ended, however it ended."""
        cell = outcome.task.cell
        row = outcome.row or Row(cell, outcome.status, outcome.reason)
        if row.key != cell.key:
            row = Row(cell, Status.FAILED, f"the stages returned the row of {row.cell.label}")
        row = complete(row, outcome.seconds, self.plan.stamp(cell))
        if cell.method == "fp":
            # What cells share is booked once. Shared stages from the cache cost next to nothing;
            # what they cost when they were made is what an estimate wants.
            before = self._rows.get(cell.key)
            past = before.seconds.get(SHARED, 0.0) if before else 0.0
            spent = max(past, self._shared.get(cell.shared_key, 0.0))
            row = replace(row, seconds={SHARED: spent, **row.seconds})
        force = self.options.force or cell.key in self.plan.stale
        row = self.store.put(row, force=force)
        self._rows[row.key] = row
        why = _cost(row) if row.status is Status.OK else f": {row.reason}"
        self._say(outcome.task, f"{cell.label} {row.status}, {minutes(outcome.seconds)}{why}")

    def _time(self) -> None:
        """Latency of every ok row that has none, one at a time, with nothing else running."""
        wanted = (self._rows.get(cell.key) for cell in self.plan.todo.untimed)
        tasks = [Task("time", row.cell, row) for row in wanted if row and needs_timing(row)]
        if not tasks:
            return
        if not self.plan.todo.cells:
            self.reporter.open(len(tasks))
        executor = self._executor(Fan("alone" if self.plan.fan.executor == "ray" else "local", 1))
        try:
            for task in tasks:
                self._began[task] = time.monotonic()
                executor.start(task)
                self._listen(task, "starting", 0, 1)
                outcome = executor.wait()
                del self._began[task]
                row = self.store.amend(timed(task, outcome))
                self._rows[row.key] = row
                self._say(task, f"{task.cell.label} timed, {_ratio(row)}")
        finally:
            executor.close()
            self._began.clear()

    def _executor(self, fan: Fan) -> Executor:
        setting = Setting(
            results=str(self.store.folder.resolve()),
            cache=str(self.options.cache.resolve()),
            plugins=self.options.plugins,
            prefer_plugin=self.options.prefer_plugin,
            stages=self.options.stages,
        )
        listener: Listener = self._listen
        if fan.executor == "ray":
            from quantarena.bench.run.ray_executor import RayExecutor

            self.reporter.say(f"starting {fan.workers} workers")
            return RayExecutor(setting, listener, fan.workers, self._timeout())
        if fan.executor == "alone":
            from quantarena.bench.run.process_executor import AloneExecutor

            return AloneExecutor(setting, listener, self._timeout())
        return LocalExecutor(setting, listener, self._timeout())

    def _timeout(self) -> float:
        if self.options.timeout is not None:
            return self.options.timeout
        rates = self._rates()
        longest = max((rates.cell_seconds(c) for c in self.plan.todo.cells), default=0.0)
        return max(LEAST_TIMEOUT, 8 * longest)

    def _rates(self) -> Rates:
        return Rates.of((*self._rows.values(), *self.history), machine.fingerprint())

    def _say(self, task: Task, line: str) -> None:
        self._over.add((task.kind, task.cell.key))
        todo = self.plan.todo
        self.reporter.left(self._seconds_left())
        total = len(todo.shared) + len(todo.cells) + len(todo.untimed)
        self.reporter.ended(task, len(self._over), total, line)

    def _listen(self, task: Task, stage: str, done: int, total: int) -> None:
        self.reporter.left(self._seconds_left())
        self.reporter.running(task, stage, done, total)

    def _seconds_left(self) -> float:
        """The estimate again, from the rows of this run and what its tasks have behind them."""
        todo, now, workers = self.plan.todo, time.monotonic(), self.plan.fan.workers
        left = Todo(
            shared=tuple(c for c in todo.shared if ("prepare", c.key) not in self._over),
            cells=tuple(c for c in todo.cells if ("cell", c.key) not in self._over),
            untimed=tuple(c for c in todo.untimed if ("time", c.key) not in self._over),
            prepared=todo.prepared,
        )
        running = {f"{t.kind}:{t.cell.key}": now - began for t, began in self._began.items()}
        return remaining_seconds(left, self._rates(), workers, running)


def complete(row: Row, seconds: float, stamp: str = "") -> Row:
    """Fill in what every row has, when the stages did not come so far."""
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
    """The row with its latency, or with the reason why there is none."""
    row = outcome.row if outcome.row and outcome.row.key == task.cell.key else task.row
    assert row is not None
    seconds = {"time": round(outcome.seconds, 3), **row.seconds}
    if outcome.status is Status.OK:
        return replace(row, seconds=seconds)
    warning = f"latency was not measured: {outcome.reason}"
    return replace(row, seconds=seconds, warnings=(*row.warnings, warning))


def counts(cells: tuple[Cell, ...], rows: Mapping[str, Row]) -> dict[str, int]:
    """Rows of each status among the planned cells; ``missing`` counts cells without one."""
    found: dict[str, int] = {str(status): 0 for status in Status} | {"missing": 0}
    for cell in cells:
        row = rows.get(cell.key)
        found[str(row.status) if row else "missing"] += 1
    return found


def counts_line(found: Mapping[str, int]) -> str:
    """``24 ok, 1 skipped, 0 failed``, with timeouts and the like only where there are any."""
    always = [f"{found[name]} {name}" for name in ("ok", "skipped", "failed")]
    rest = [f"{found[name]} {name}" for name in ("timeout", "oom", "missing") if found[name]]
    return ", ".join(always + rest)


def _cost(row: Row) -> str:
    """What quantizing took, where it took anything worth a word."""
    busy, peak = row.calibration.get("core_seconds", 0.0), row.calibration.get("peak_bytes", 0)
    if busy < 0.1:
        return ""
    return f" (quantized in {busy:.1f} core-s, {peak / 1e6:+.0f} MB)"


def _ratio(row: Row) -> str:
    latency: Any = row.latency
    if latency is None:
        return "no latency" + (f" ({row.warnings[-1]})" if row.warnings else "")
    return f"{latency.ratio:.2f} x fp ({latency.backend})"
