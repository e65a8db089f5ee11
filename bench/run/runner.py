"""The run of a plan: shared stages first, then cells in parallel, then latency one at a time.

Only this module writes rows, each as soon as its task has ended, and only in the process that the
user started. No torch.
"""

import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantarena.bench import machine
from quantarena.bench.errors import UserError
from quantarena.bench.plan.estimate import SHARED, Rates, Todo, remaining_seconds
from quantarena.bench.plan.plan import Fan, Plan, minutes, needs_timing
from quantarena.bench.process_state import inherited_changes, lasting_changes
from quantarena.bench.run import handover
from quantarena.bench.run.executors import (
    Executor,
    Listener,
    Outcome,
    Remote,
    Setting,
    Task,
)
from quantarena.bench.run.local_executor import LocalExecutor
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.run.rows import complete, cost_note, latency_note, marked, timed, with_less
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.store import Store

LEAST_TIMEOUT = 1800.0
"""The least timeout of a cell in seconds, however short its estimate."""


LEAST_SPENT = 10.0
"""Seconds of a stage from which on its pace says when it ends."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a run that are not part of its plan.

    Attributes:
        cache: folder of cached stages.
        stages: name of the module that does the work.
        plugins: absolute paths of plug-in files.
        prefer_plugin: whether a plug-in wins over a built-in of the same name.
        timeout: seconds a cell may take; None gives eight times its estimate, at least half an
            hour; 0 is no limit.
        force: whether a failed attempt may replace an ok row.
        remote: makes executors of a cluster; None where the run has none.
    """

    cache: Path
    stages: str
    plugins: tuple[str, ...] = ()
    prefer_plugin: bool = False
    timeout: float | None = None
    force: bool = False
    remote: Remote | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How far the present stage of a task is.

    Attributes:
        stage: its name.
        began: when it did, in seconds of the monotonic clock.
        now: when it was last heard of.
        done, total: what it said then.
    """

    stage: str
    began: float
    now: float
    done: int
    total: int

    def whole(self, started: float) -> float:
        """Seconds of a task that started then, if its stage goes on as before and is the last.

        0 while there is too little to go by.
        """
        spent = self.now - self.began
        if spent < LEAST_SPENT or not 0 < self.done <= self.total:
            return 0.0
        return self.began - started + spent * self.total / self.done


@dataclass(slots=True)
class Run:
    """One run of a plan, started by ``execute``.

    Attributes:
        plan: the cells to run and how.
        store: where rows go.
        options: further options.
        reporter: shows progress.
        history: rows of earlier runs, from which durations are estimated.
    """

    plan: Plan
    store: Store
    options: Options
    reporter: Reporter
    history: tuple[Row, ...] = ()
    _rows: dict[str, Row] = field(default_factory=dict)
    _shared: dict[str, float] = field(default_factory=dict)
    _began: dict[Task, float] = field(default_factory=dict)
    _over: set[tuple[str, str]] = field(default_factory=set)
    _pace: dict[Task, Pace] = field(default_factory=dict)
    _workers: int = 1

    def execute(self) -> None:
        """Run the unfinished cells. Every row is on disk when this returns or is interrupted.

        Raises:
            UserError: rows cannot be written, or a model that all cells need is broken.
            KeyboardInterrupt: raised again after the workers were stopped.
        """
        # Resolved once: a method that changes the working directory must not move the results.
        self.store = replace(self.store, folder=self.store.folder.resolve())
        self.options = replace(self.options, cache=self.options.cache.resolve())
        self._rows = {row.key: row for row in self.store.rows()}
        self._workers = self.plan.fan.workers
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
        fan = self.plan.fan
        if fan.executor == "local" and lasting_changes():  # an imported plug-in's, say
            fan = Fan("alone", 1)
        executor = self._executor(fan)
        try:
            while ready or self._began:
                self._fill(executor, ready)
                outcome = executor.wait()
                del self._began[outcome.task]
                if outcome.lasting and isinstance(executor, LocalExecutor):
                    executor = self._child()
                if (again := with_less(outcome)) is not None:
                    full = again.cell.budget.batch
                    self.reporter.say(
                        f"  {again.label}: memory ran out with {full} images together; it starts "
                        f"again with {again.batch}"
                    )
                    ready.appendleft(again)
                    continue
                if outcome.task.kind == "cell":
                    self._keep(outcome)
                    continue
                cells = blocked.pop(outcome.task.cell.shared_key)
                if outcome.status is Status.OK:
                    self._shared[outcome.task.cell.shared_key] = round(outcome.seconds, 3)
                    self._say(outcome.task, f"shared stages, {minutes(outcome.seconds)}")
                    batch = outcome.task.batch
                    ready.extend(Task("cell", cell, batch=batch) for cell in self._ordered(cells))
                else:
                    self._cannot_prepare(outcome, cells, others=bool(blocked))
        except KeyboardInterrupt:
            self.reporter.say("stopping")
            raise
        finally:
            executor.close()
            self._began.clear()

    def _fill(self, executor: Executor, ready: deque[Task]) -> None:
        """Start tasks while the executor has room."""
        self._workers = max(executor.slots, self.plan.fan.workers)
        while ready and len(self._began) < executor.slots:
            task = ready.popleft()
            self._began[task] = time.monotonic()
            executor.start(task)
            self._listen(task, "starting", 0, 1)

    def _cannot_prepare(self, outcome: Outcome, cells: list[Cell], *, others: bool) -> None:
        """Fail the cells of shared stages that failed.

        A user's mistake ends the run at once if no other cells are left.
        """
        if outcome.user_error and not others and not self._over:
            raise UserError(outcome.reason)
        self._say(outcome.task, f"shared stages {outcome.status}: {outcome.reason}")
        for cell in cells:
            reason = f"shared stages: {outcome.reason}"
            self._keep(replace(outcome, task=Task("cell", cell), reason=reason))

    def _ordered(self, cells: list[Cell]) -> list[Cell]:
        """The cells, longest first if several run at a time, so that the last ones are short."""
        if self.plan.fan.workers == 1:
            return cells
        rates = self._rates()
        return sorted(cells, key=rates.cell_seconds, reverse=True)

    def _keep(self, outcome: Outcome) -> None:
        """Write the row of a cell that has ended, whatever its status."""
        cell = outcome.task.cell
        row = outcome.row or Row(cell, outcome.status, outcome.reason)
        if row.key != cell.key:
            row = Row(cell, Status.FAILED, f"the stages returned the row of {row.cell.label}")
        row = marked(
            complete(row, outcome.seconds, self.plan.stamp(cell)), outcome, inherited_changes()
        )
        if cell.method == "fp":
            # The cost of shared stages is booked on this row only. Stages from the cache cost
            # nothing now; estimates need what they cost when they were computed.
            before = self._rows.get(cell.key)
            past = before.seconds.get(SHARED, 0.0) if before else 0.0
            spent = max(past, self._shared.get(cell.shared_key, 0.0))
            row = replace(row, seconds={SHARED: spent, **row.seconds})
        force = self.options.force or cell.key in self.plan.stale
        row = self.store.put(row, force=force)
        self._rows[row.key] = row
        why = cost_note(row) if row.status is Status.OK else f": {row.reason}"
        self._say(outcome.task, f"{cell.label} {row.status}, {minutes(outcome.seconds)}{why}")

    def _time(self) -> None:
        """Measure the latency of each ok row that has none, one by one; nothing else runs.

        A cluster measures one on each of its machines at a time.
        """
        wanted = (self._rows.get(cell.key) for cell in self.plan.todo.untimed)
        tasks = deque(Task("time", row.cell, row) for row in wanted if row and needs_timing(row))
        if not self.plan.todo.cells and tasks:
            self.reporter.open(len(tasks))
        tasks = deque(task for task in tasks if not self._timed_before(task))
        if not tasks:
            return
        alone = self.plan.fan.executor == "ray" or bool(lasting_changes())
        executor = self._executor(Fan("alone" if alone else "local", 1), timing=True)
        try:
            while tasks or self._began:
                self._fill(executor, tasks)
                outcome = executor.wait()
                task = outcome.task
                del self._began[task]
                if outcome.lasting and isinstance(executor, LocalExecutor):
                    executor = self._child()
                self._keep_time(outcome)
        finally:
            executor.close()
            self._began.clear()

    def _timed_before(self, task: Task) -> bool:
        """Store what an earlier run's process has measured, if that run died too early to do it."""
        found = task.row and handover.taken(self.store.folder, task.row)
        if not found:
            return False
        self._keep_time(Outcome(task, Status.OK, found.seconds["time"], found))
        return True

    def _keep_time(self, outcome: Outcome) -> None:
        """Store a row with its latency, or with the reason why it has none."""
        task = outcome.task
        row = self.store.amend(marked(timed(task, outcome), outcome, inherited_changes()))
        handover.drop(self.store.folder, row)
        self._rows[row.key] = row
        self._say(task, f"{task.cell.label} timed, {latency_note(row)}")

    def _child(self) -> Executor:
        """An executor for the tasks left over by this process, which can do no more of them."""
        self.reporter.say("  this process was changed for good: a child process does the rest")
        return self._executor(Fan("alone", 1))

    def _executor(self, fan: Fan, *, timing: bool = False) -> Executor:
        setting = Setting(
            results=str(self.store.folder),
            cache=str(self.options.cache),
            plugins=self.options.plugins,
            prefer_plugin=self.options.prefer_plugin,
            stages=self.options.stages,
        )
        listener: Listener = self._listen
        if self.options.remote is not None:
            timeout, say = self._timeout(), self.reporter.say
            return self.options.remote(setting, listener, timeout, timing=timing, say=say)
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
        rows = (*self._rows.values(), *self.history)
        return Rates.of(rows, machine.fingerprint(), self.plan.sizes)

    def _say(self, task: Task, line: str) -> None:
        self._over.add((task.kind, task.cell.key))
        todo = self.plan.todo
        self.reporter.left(self._seconds_left())
        total = len(todo.shared) + len(todo.cells) + len(todo.untimed)
        self.reporter.ended(task, len(self._over), total, line)

    def _listen(self, task: Task, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        before = self._pace.get(task)
        began = before.began if before and before.stage == stage else now
        self._pace[task] = Pace(stage, began, now, done, total)
        self.reporter.left(self._seconds_left())
        self.reporter.running(task, stage, done, total)

    def _seconds_left(self) -> float:
        """The estimate of the seconds left, from this run's rows and the time of present tasks."""
        todo, now, workers = self.plan.todo, time.monotonic(), self._workers
        left = Todo(
            shared=tuple(c for c in todo.shared if ("prepare", c.key) not in self._over),
            cells=tuple(c for c in todo.cells if ("cell", c.key) not in self._over),
            untimed=tuple(c for c in todo.untimed if ("time", c.key) not in self._over),
            prepared=todo.prepared,
        )
        running = {f"{t.kind}:{t.cell.key}": now - began for t, began in self._began.items()}
        projected = {
            f"{task.kind}:{task.cell.key}": pace.whole(self._began[task])
            for task, pace in self._pace.items()
            if task in self._began
        }
        return remaining_seconds(left, self._rates(), workers, running, projected)
