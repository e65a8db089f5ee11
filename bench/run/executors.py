"""Where tasks run: in this process here, over Ray's workers in ``executors_ray``. No torch.

An executor takes tasks one by one and gives outcomes back in the order they end. It never lets
a task's failure out as an exception: whatever happens to a cell is an outcome with a reason.
"""

import contextlib
import importlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal, Protocol

from quantarena.bench.errors import UserError, one_line
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell

STAGES = "quantarena.bench.stages.sequence"
"""Module with ``Paths``, ``prepare``, ``run_cell`` and ``time_cell``."""

Kind = Literal["prepare", "cell", "time"]
Listener = Callable[["Task", str, int, int], None]
"""Called with (task, stage, done, total) while a task runs."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What every task of a run shares; plain data, sent to each worker once.

    Attributes:
        results: results folder of this run.
        cache: folder of cached stages, shared by all runs.
        stages: module that does the work.
        plugins: plug-in files.
        prefer_plugin: whether a plug-in wins over a built-in of the same name.
    """

    results: str
    cache: str
    stages: str
    plugins: tuple[str, ...] = ()
    prefer_plugin: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work: a cell, or what cells share (``prepare``, named by one of them)."""

    kind: Kind
    cell: Cell
    row: Row | None = field(default=None, compare=False)

    @property
    def label(self) -> str:
        """Short name for progress."""
        timing = f"timing {self.cell.label}"
        return {"prepare": "shared stages", "time": timing}.get(self.kind, self.cell.label)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended.

    Attributes:
        task: which.
        status: ok when the task came back at all; its row may still say otherwise.
        seconds: wall seconds.
        row: of a cell or its timing.
        reason: one line when it did not come back.
        user_error: True when the reason is the user's to mend.
    """

    task: Task
    status: Status
    seconds: float
    row: Row | None = None
    reason: str = ""
    user_error: bool = False


class Executor(Protocol):
    """Runs tasks, at most ``slots`` at a time."""

    slots: int

    def start(self, task: Task) -> None:
        """Hand a task over; only while fewer than ``slots`` are unfinished."""

    def wait(self) -> Outcome:
        """Block until a task ends, reporting progress meanwhile."""

    def close(self) -> None:
        """Stop everything at once."""


class CellTimeout(BaseException):
    """Raised inside a task that is over its time; no ``except Exception`` swallows it."""


def perform(task: Task, setting: Setting, progress: Callable[[str, int, int], None]) -> Row | None:
    """Do a task in this process. This is where torch gets imported."""
    from pathlib import Path

    stages = importlib.import_module(setting.stages)
    paths = stages.Paths(results=Path(setting.results), cache=Path(setting.cache))
    plugins = setting.plugins
    if task.kind == "prepare":
        stages.prepare(task.cell, paths, plugins=plugins, progress=progress)
        return None
    if task.kind == "time":
        return _row(stages.time_cell(task.row, paths, plugins=plugins, progress=progress))
    return _row(
        stages.run_cell(
            task.cell,
            paths,
            plugins=plugins,
            prefer_plugin=setting.prefer_plugin,
            progress=progress,
        )
    )


def attempt(
    task: Task, setting: Setting, progress: Callable[[str, int, int], None], timeout: float = 0.0
) -> Outcome:
    """``perform`` with every way to fail turned into an outcome, but an interrupt."""
    began = time.monotonic()
    status, row, reason, user_error = Status.OK, None, "", False
    try:
        with _deadline(timeout):
            row = perform(task, setting, progress)
    except CellTimeout:
        status, reason = Status.TIMEOUT, f"stopped after {timeout:.0f} s"
    except MemoryError:
        status, reason = Status.OOM, "out of memory"
    except UserError as error:
        status, reason, user_error = Status.FAILED, str(error), True
    except Exception as error:
        status, reason = Status.FAILED, one_line(error)
    return Outcome(task, status, time.monotonic() - began, row, reason, user_error)


class LocalExecutor:
    """Runs tasks in this process, one at a time: for short runs and for debugging."""

    slots = 1

    def __init__(self, setting: Setting, listener: Listener, timeout: float = 0.0) -> None:
        self._setting = setting
        self._listener = listener
        self._timeout = timeout
        self._waiting: Task | None = None

    def start(self, task: Task) -> None:
        """Remember the task until ``wait`` runs it."""
        assert self._waiting is None, "one task at a time"
        self._waiting = task

    def wait(self) -> Outcome:
        """Run the task."""
        task, self._waiting = self._waiting, None
        assert task is not None, "nothing to wait for"
        return attempt(
            task,
            self._setting,
            lambda stage, done, total: self._listener(task, stage, done, total),
            self._timeout,
        )

    def close(self) -> None:
        """Nothing is held."""


def _row(value: Any) -> Row:
    if not isinstance(value, Row):
        raise TypeError(f"a stage returned {type(value).__name__} instead of a row")
    return value


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise ``CellTimeout`` in the main thread after so many seconds; 0 is never."""
    if seconds <= 0 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(signum: int, frame: FrameType | None) -> None:
        raise CellTimeout

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
