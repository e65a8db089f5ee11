"""Tasks, their outcomes, and the interface of the executors that run them. No torch.

An executor takes tasks one by one and returns their outcomes in the order in which they end. A task
that fails raises no exception: whatever happens to a cell is an outcome with a reason.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.storage.stages import Use

STAGES = "quantarena.bench.stages.sequence"
"""The module that does the work: ``Paths``, ``prepare``, ``run_cell`` and ``time_cell``."""

START_LIMIT = 600.0
"""Time that a worker process may take to start."""

Kind = Literal["prepare", "cell", "time"]
Listener = Callable[["Task", str, int, int], None]
"""A function that is called with (task, stage, done, total) while a task runs."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings that all tasks of a run share. Plain data, sent to each worker once.

    Attributes:
        results: absolute path of this run's results folder.
        cache: absolute path of the folder of cached stages, which all runs share.
        stages: name of the module that does the work.
        plugins: absolute paths of plug-in files.
        prefer_plugin: whether a plug-in wins over a built-in of the same name.
    """

    results: str
    cache: str
    stages: str
    plugins: tuple[str, ...] = ()
    prefer_plugin: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work.

    Attributes:
        kind: ``cell`` for everything of a cell but its latency, ``time`` for its latency,
            ``prepare`` for the stages that several cells share.
        cell: the cell; for ``prepare``, any of the cells that share the stages.
        row: the row that gets a latency, for ``time``.
        batch: images drawn together, where the cell's own number took too much memory; 0 is that
            number.
    """

    kind: Kind
    cell: Cell
    row: Row | None = field(default=None, compare=False)
    batch: int = field(default=0, compare=False)

    @property
    def label(self) -> str:
        """A short name for progress lines."""
        timing = f"timing {self.cell.label}"
        return {"prepare": "shared stages", "time": timing}.get(self.kind, self.cell.label)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended.

    Attributes:
        task: the task that ended.
        status: ok if the task returned; its row may still have another status.
        seconds: wall seconds that it took.
        row: the row it returned, if any.
        reason: one line on why it did not return.
        user_error: True if the user can mend the reason.
        lasting: the changes that the task made to its process and that cannot be undone. A process
            with any is replaced, so that the next task starts in a clean one.
        notes: what its row has to say of how it came about, such as a worker that was lost.
        uses: the cache entries that the task made or used, with what making them took.
    """

    task: Task
    status: Status
    seconds: float
    row: Row | None = None
    reason: str = ""
    user_error: bool = False
    lasting: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    uses: tuple[Use, ...] = ()


def where(reported: tuple[str, int, int]) -> str:
    """How far a task was, by the (stage, done, total) that was last heard of it; for reasons."""
    stage, done, total = reported
    if not stage:
        return " before its first stage"
    return f" in stage {stage}" + (f" ({done} of {total})" if total > 1 else "")


class Executor(Protocol):
    """Runs tasks, at most ``slots`` at a time; a cluster's number changes while it runs."""

    @property
    def slots(self) -> int:
        """The largest number of unfinished tasks at this time, at least 1."""

    def start(self, task: Task) -> None:
        """Start a task. Fewer than ``slots`` tasks may be unfinished at that time."""

    def wait(self) -> Outcome:
        """Wait until a task ends and return its outcome; report progress meanwhile."""

    def close(self) -> None:
        """Stop all tasks at once and release what the executor holds."""


class Remote(Protocol):
    """Makes the executor of a cluster, which a room to the right of this one knows."""

    def __call__(
        self,
        setting: Setting,
        listener: Listener,
        timeout: float,
        *,
        timing: bool,
        say: Callable[[str], None],
    ) -> Executor:
        """The executor of cells, or of timings."""
