"""Does one task in the present process and turns every failure into an outcome."""

import contextlib
import importlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from quantarena.bench.errors import Stop, UserError, is_interrupt, one_line
from quantarena.bench.process_state import lasting_changes
from quantarena.bench.run import handover
from quantarena.bench.run.executors import Outcome, Setting, Task
from quantarena.bench.schema import Row, Status
from quantarena.bench.storage.stages import Use, shared_stages


class CellTimeout(Stop):
    """Raised inside a task that exceeds its time. ``except Exception`` does not catch it."""


def perform(task: Task, setting: Setting, progress: Callable[[str, int, int], None]) -> Row | None:
    """Do a task in this process and return its row, if it has one. This imports torch."""
    stages = importlib.import_module(setting.stages)
    paths = stages.Paths(results=Path(setting.results), cache=Path(setting.cache))
    plugins = setting.plugins
    if task.kind == "prepare":
        stages.prepare(task.cell.batched(task.batch), paths, plugins=plugins, progress=progress)
        return None
    if task.kind == "time":
        began = time.monotonic()
        row = _row(stages.time_cell(task.row, paths, plugins=plugins, progress=progress))
        row = replace(row, seconds={**row.seconds, "time": round(time.monotonic() - began, 3)})
        if row.key == task.cell.key:
            handover.leave(paths.results, row)
        return row
    return _row(
        stages.run_cell(
            task.cell,
            paths,
            plugins=plugins,
            prefer_plugin=setting.prefer_plugin,
            progress=progress,
            **({"batch": task.batch} if task.batch else {}),
        )
    )


def attempt(
    task: Task, setting: Setting, progress: Callable[[str, int, int], None], timeout: float = 0.0
) -> Outcome:
    """Do a task and return its outcome, whatever happens; only an interrupt is raised.

    Args:
        task: the task.
        setting: settings of the run.
        progress: called with (stage, done, total).
        timeout: seconds after which the task is stopped; 0 is no limit.
    """
    began, earlier = time.monotonic(), lasting_changes()
    status, row, reason, user_error = Status.OK, None, "", False
    uses: dict[str, Use] = {}
    try:
        with _deadline(timeout), shared_stages(Path(setting.cache)) as uses:
            row = perform(task, setting, progress)
    except CellTimeout:
        status, reason = Status.TIMEOUT, f"stopped after {timeout:.0f} s"
    except MemoryError:
        status, reason = Status.OOM, "out of memory"
    except UserError as error:
        status, reason, user_error = Status.FAILED, str(error), True
    except BaseException as error:  # a plug-in may raise anything, SystemExit too
        if is_interrupt(error):
            raise
        status, reason = Status.FAILED, one_line(error)
    seconds = time.monotonic() - began
    lasting = tuple(change for change in lasting_changes() if change not in earlier)
    return Outcome(
        task, status, seconds, row, reason, user_error, lasting, uses=tuple(uses.values())
    )


def _row(value: Any) -> Row:
    if not isinstance(value, Row):
        raise TypeError(f"a stage returned {type(value).__name__} instead of a row")
    return value


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise ``CellTimeout`` inside the block after ``seconds``; 0 is no limit.

    Only the main thread receives signals: in another thread there is no limit.
    """
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
