"""The run of a plan: shared stages first, then cells in parallel, then latency one at a time.

Only this module writes rows, each as soon as its task has ended, and only in the process that the
user started. Other drivers may work on the same folder (``work.py``). No torch.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantarena.bench.errors import UserError
from quantarena.bench.plan.estimate import ALONE, SHARED
from quantarena.bench.plan.plan import STAMP, Fan, Plan, minutes, needs_timing
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
from quantarena.bench.run.progress import Progress
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.run.rows import (
    complete,
    cost_note,
    latency_note,
    marked,
    timed,
    untimed_why,
    with_less,
)
from quantarena.bench.run.together import Together
from quantarena.bench.run.work import Work
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.storage.outlines import outline, outlines
from quantarena.bench.storage.prepared import note_prepared, prepared
from quantarena.bench.store import Store

LEAST_TIMEOUT = 1800.0
"""The least timeout of a cell in seconds, however short its estimate."""

INDEX_ROWS = 256
"""New rows after which the index of outlines is brought up to date in mid-run."""


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


@dataclass(slots=True)
class Run:
    """One run of a plan, started by ``execute``.

    Attributes:
        plan: the cells to run and how.
        store: where rows go.
        options: further options.
        reporter: shows progress.
        history: outlines of earlier runs, from which durations are estimated.
        together: what this driver shares with others on the same folder.
        seen: outlines of the folder's rows that the plan was made from. What has come since, others
            have done.
    """

    plan: Plan
    store: Store
    options: Options
    reporter: Reporter
    history: tuple[Row, ...] = ()
    together: Together = field(default_factory=Together)
    seen: tuple[Row, ...] = ()
    _rows: dict[str, Row] = field(default_factory=dict)
    _shared: dict[str, float] = field(default_factory=dict)
    _blocked: dict[str, list[Cell]] = field(default_factory=dict)
    _new: int = 0
    _progress: Progress = field(init=False)

    def execute(self) -> None:
        """Run the unfinished cells. Every row is on disk when this returns or is interrupted.

        Raises:
            UserError: rows cannot be written, or a model that all cells need is broken.
            KeyboardInterrupt: raised again after the workers were stopped.
        """
        # Resolved once: a method that changes the working directory must not move the results.
        self.store = replace(self.store, folder=self.store.folder.resolve())
        self.options = replace(self.options, cache=self.options.cache.resolve())
        self._rows = {row.key: row for row in self.seen}
        self._progress = Progress(self.plan, self.reporter, self._rows, self.history)
        self._progress.told = self.together.told
        try:
            if self.plan.todo.cells:
                with self.together.beside_others():
                    self._fan_out()
            self._time()
        finally:
            self.reporter.close()
            self.together.close()

    def _fan_out(self) -> None:
        todo = self.plan.todo
        for cell in todo.cells:
            self._blocked.setdefault(cell.shared_key, []).append(cell)
        tasks = (Task("prepare", cell) for cell in todo.shared)
        work = Work(tasks, self.together.claims, lambda task: self._settled(task, work))
        self.reporter.open(len(todo.shared) + len(todo.cells) + len(todo.untimed))
        fan = self.plan.fan
        if fan.executor == "local" and lasting_changes():  # an imported plug-in's, say
            fan = Fan("alone", 1)
        executor = self._executor(fan)
        try:
            while work or self._progress.began:
                self._fill(executor, work)
                if not self._progress.began:
                    work.pause()
                    continue
                outcome = executor.wait()
                self._progress.over(outcome.task)
                if outcome.lasting and isinstance(executor, LocalExecutor):
                    executor = self._child()
                if (again := with_less(outcome)) is not None:
                    full = again.cell.budget.batch
                    self.reporter.say(
                        f"  {again.label}: memory ran out with {full} images together; it starts "
                        f"again with {again.batch}"
                    )
                    self._start(executor, again)
                    continue
                if outcome.task.kind == "cell":
                    self._keep(outcome, work)
                else:
                    self._unblock(outcome, work)
                self.together.claims.release(outcome.task)
        except KeyboardInterrupt:
            self.reporter.say("stopping")
            raise
        finally:
            executor.close()
            self._progress.began.clear()

    def _fill(
        self, executor: Executor, work: Work, ready: Callable[[Task], Task] | None = None
    ) -> None:
        """Start tasks while the executor has room."""
        self._progress.workers = max(executor.slots, self.plan.fan.workers)
        while len(self._progress.began) < executor.slots and (task := work.next()) is not None:
            self._start(executor, ready(task) if ready else task)

    def _start(self, executor: Executor, task: Task) -> None:
        """Hand a task that is ours to a worker."""
        self._progress.start(task)
        executor.start(task)
        self._progress.listen(task, "starting", 0, 1)

    def _settled(self, task: Task, work: Work) -> bool:
        """Whether a task is done: a cell by another driver since this run was planned."""
        if task.kind == "prepare":
            note = prepared(self.options.cache, task.cell.shared_key)
            if note is None or note.stamp != self.plan.stamp(note.cell):
                return False
            if not note.there(self.options.cache):
                return False
            self._say(task, "shared stages are there")
            cells = self._blocked.pop(task.cell.shared_key)
            work.extend(Task("cell", cell) for cell in self._ordered(cells))
            return True
        row = self.together.get(self.store, task.cell.key)
        before = self._rows.get(task.cell.key)
        if row is None or (before is not None and row.attempt == before.attempt):
            return False
        ours, theirs = self.plan.stamp(task.cell), row.stage_keys.get(STAMP, "")
        if ours and theirs and ours != theirs:  # of other code: that one is no result of this run
            return False
        self._remember(row)
        self._say(task, f"{task.cell.label} {row.status}, by another run")
        return True

    def _unblock(self, outcome: Outcome, work: Work) -> None:
        """Let the cells go that waited for shared stages, or fail them."""
        cell = outcome.task.cell
        cells = self._blocked.pop(cell.shared_key)
        if outcome.status is not Status.OK:
            self._cannot_prepare(outcome, cells, work)
            return
        self._shared[cell.shared_key] = round(outcome.seconds, 3)
        with contextlib.suppress(UserError):  # it helps to estimate, and to share work
            note_prepared(self.options.cache, cell, self.plan.stamp(cell), outcome.uses)
        self._say(outcome.task, f"shared stages, {minutes(outcome.seconds)}")
        batch = outcome.task.batch  # what had room, if its own had none
        work.extend(Task("cell", cell, batch=batch) for cell in self._ordered(cells))

    def _cannot_prepare(self, outcome: Outcome, cells: list[Cell], work: Work) -> None:
        """Fail the cells of shared stages that failed, but for those that another driver has.

        A user's mistake ends the run at once if no other cells are left.
        """
        if outcome.user_error and not self._blocked and not self._progress.ended:
            raise UserError(outcome.reason)
        self._say(outcome.task, f"shared stages {outcome.status}: {outcome.reason}")
        for cell in cells:
            reason, task = f"shared stages: {outcome.reason}", Task("cell", cell)
            if self.together.claims.take(task):
                if not self._settled(task, work):
                    self._keep(replace(outcome, task=task, reason=reason), work)
                self.together.claims.release(task)

    def _ordered(self, cells: list[Cell]) -> list[Cell]:
        """The cells, longest first if several run at a time, so that the last ones are short."""
        if self.plan.fan.workers == 1:
            return cells
        rates = self._progress.rates()
        return sorted(cells, key=rates.cell_seconds, reverse=True)

    def _keep(self, outcome: Outcome, work: Work) -> None:
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
        if not self.together.claims.ours(outcome.task):
            self._say(outcome.task, f"{cell.label}: another run has taken it over, which counts")
            work.extend([Task("cell", cell)])  # it is done when the other one has done it
            return
        if self._settled(outcome.task, work):  # it was, while this driver slept
            return
        force = self.options.force or cell.key in self.plan.stale
        row = self.store.put(row, force=force)
        self.together.push(row)
        self._remember(row)
        why = cost_note(row) if row.status is Status.OK else f": {row.reason}"
        self._say(outcome.task, f"{cell.label} {row.status}, {minutes(outcome.seconds)}{why}")

    def _remember(self, row: Row) -> None:
        """Keep what later tasks and estimates need of a row."""
        self._rows[row.key] = kept = outline(row)
        self._progress.add(kept)
        self._new += 1
        if self._new % INDEX_ROWS == 0:  # so that a killed run of many cells resumes fast
            outlines(self.store)

    def _time(self) -> None:
        """Measure the latency of each ok row that has none, one by one; nothing else runs.

        A cluster measures one on each of its machines at a time.
        """
        wanted = (self._rows.get(cell.key) for cell in self.plan.todo.untimed)
        tasks = [Task("time", row.cell) for row in wanted if row and needs_timing(row)]
        if not tasks:
            return
        if not self.plan.todo.cells:
            self.reporter.open(len(tasks))
        alone = self.plan.fan.executor == "ray" or bool(lasting_changes())
        executor = self._executor(Fan("alone" if alone else "local", 1), timing=True)
        before = {task.cell.key: self._rows[task.cell.key].warnings for task in tasks}
        work = Work(tasks, self.together.claims, lambda task: self._timed_elsewhere(task, before))
        try:
            while work or self._progress.began:
                with self.together.alone_here(self.reporter.say):
                    self._fill(executor, work, self._with_row)
                    outcome = executor.wait() if self._progress.began else None
                if outcome is None:
                    work.pause()
                    continue
                task = outcome.task
                self._progress.over(task)
                if outcome.lasting and isinstance(executor, LocalExecutor):
                    executor = self._child()
                if self.together.claims.ours(task) and self._still_untimed(task):
                    self._keep_time(outcome)
                self.together.claims.release(task)
        finally:
            executor.close()
            self._progress.began.clear()

    def _still_untimed(self, task: Task) -> bool:
        """Whether no other driver has timed the row while this one slept."""
        row = self.together.get(self.store, task.cell.key)
        return row is not None and needs_timing(row)

    def _with_row(self, task: Task) -> Task:
        """A timing task with the row that it amends, as it is now."""
        return replace(task, row=self.store.get(task.cell.key))

    def _timed_elsewhere(self, task: Task, before: dict[str, tuple[str, ...]]) -> bool:
        """Whether another driver has timed a row, has tried to, or should."""
        row = self.together.get(self.store, task.cell.key)
        if row is None:
            return True  # it was deleted: the next run makes it again
        failed = untimed_why(row) and row.warnings != before[task.cell.key]
        if needs_timing(row) and not failed:
            # A process of an earlier run may have measured it, and the run died before it knew.
            found = handover.taken(self.store.folder, row)
            if found is not None:
                spent = found.seconds[ALONE]
                self._keep_time(Outcome(replace(task, row=row), Status.OK, spent, found))
            return found is not None
        self._remember(row)
        self._say(task, f"{task.cell.label} timed by another run, {latency_note(row)}")
        return True

    def _keep_time(self, outcome: Outcome) -> None:
        """Store a row with its latency, or with the reason why it has none."""
        task = outcome.task
        row = self.store.amend(marked(timed(task, outcome), outcome, inherited_changes()))
        self.together.push(row)
        handover.drop(self.store.folder, row)
        self._remember(row)
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
        listener: Listener = self._progress.listen
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
        rates = self._progress.rates()
        longest = max((rates.cell_seconds(c) for c in self.plan.todo.cells), default=0.0)
        return max(LEAST_TIMEOUT, 8 * longest)

    def _say(self, task: Task, line: str) -> None:
        self._progress.say(task, line)
