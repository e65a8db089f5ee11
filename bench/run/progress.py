"""How far a run is: which tasks run, which are over, and an estimate of the seconds left.

An estimate goes over all cells that are left. With many cells and workers that costs more than what
it tells, so it is made again only after twenty times the time that the last one took.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quantarena.bench import machine
from quantarena.bench.plan.estimate import Rates, Todo, remaining_seconds
from quantarena.bench.plan.plan import Plan
from quantarena.bench.run.executors import Task
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.schema import Row

LEAST_SPENT = 10.0
"""Seconds of a stage from which on its pace says when it ends."""
_SHARE = 20.0
"""An estimate takes at most one part in so many of the driver's time."""


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
class Progress:
    """The progress of one run.

    Attributes:
        plan: what is to be done.
        reporter: shows it.
        rows: outlines of this folder's rows, by key; the run adds to them.
        history: outlines of other folders.
        told: called with (ended, total, running, seconds left) after each change.
        began: when each running task did, by the monotonic clock.
        ended: kind and key of tasks that are over.
        workers: at this time; a cluster's number changes. 0 is the plan's.
    """

    plan: Plan
    reporter: Reporter
    rows: Mapping[str, Row]
    history: tuple[Row, ...] = ()
    told: Callable[..., None] = lambda **changes: None
    began: dict[Task, float] = field(default_factory=dict)
    ended: set[tuple[str, str]] = field(default_factory=set)
    workers: int = 0
    _pace: dict[Task, Pace] = field(default_factory=dict)
    _rates: Rates | None = None
    _rated: int = 0
    _new: int = 0
    _left: float = 0.0
    _next: float = 0.0

    def start(self, task: Task) -> None:
        """A task is handed to a worker."""
        self.began[task] = time.monotonic()

    def over(self, task: Task) -> None:
        """A task has come back from its worker."""
        self.began.pop(task, None)
        self._pace.pop(task, None)

    def add(self, row: Row) -> None:
        """A row is new."""
        self._new += 1

    def say(self, task: Task, line: str) -> None:
        """A task is done; ``line`` says how."""
        self.ended.add((task.kind, task.cell.key))
        self.reporter.left(self._estimate())
        total = self._total()
        self.reporter.ended(task, len(self.ended), total, line)
        self._tell()

    def listen(self, task: Task, stage: str, done: int, total: int) -> None:
        """A worker says how far a task is."""
        now = time.monotonic()
        before = self._pace.get(task)
        began = before.began if before and before.stage == stage else now
        self._pace[task] = Pace(stage, began, now, done, total)
        self.reporter.left(self._estimate())
        self.reporter.running(task, stage, done, total)
        self._tell()

    def rates(self) -> Rates:
        """Seconds a unit of work, by all rows so far; made again as rows are added.

        With many rows each further one changes little: a tenth more of them has to be new.
        """
        if self._rates is None or self._new > self._rated // 10:
            rows = (*self.rows.values(), *self.history)
            self._rates = Rates.of(rows, machine.fingerprint(), self.plan.sizes)
            self._rated, self._new = len(self.rows), 0
        return self._rates

    def _total(self) -> int:
        todo = self.plan.todo
        return len(todo.shared) + len(todo.cells) + len(todo.untimed)

    def _tell(self) -> None:
        running = tuple(
            (task.label, pace.stage, pace.done, pace.total)
            for task, pace in self._pace.items()
            if task in self.began
        )
        self.told(
            ended=len(self.ended), total=self._total(), running=running, seconds_left=self._left
        )

    def _estimate(self) -> float:
        """The seconds left, from this run's rows and the time of present tasks."""
        began = time.monotonic()
        if began < self._next:
            return self._left
        todo = self.plan.todo
        left = Todo(
            shared=tuple(c for c in todo.shared if ("prepare", c.key) not in self.ended),
            cells=tuple(c for c in todo.cells if ("cell", c.key) not in self.ended),
            untimed=tuple(c for c in todo.untimed if ("time", c.key) not in self.ended),
            prepared=todo.prepared,
        )
        running = {f"{t.kind}:{t.cell.key}": began - since for t, since in self.began.items()}
        projected = {
            f"{task.kind}:{task.cell.key}": pace.whole(self.began[task])
            for task, pace in self._pace.items()
            if task in self.began
        }
        workers = self.workers or self.plan.fan.workers
        self._left = remaining_seconds(left, self.rates(), workers, running, projected)
        now = time.monotonic()
        self._next = now + min(30.0, _SHARE * (now - began))
        return self._left
