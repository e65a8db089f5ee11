"""Progress of a run on stderr: a progress bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from quantarena.bench.documents import clean_text
from quantarena.bench.plan.plan import minutes
from quantarena.bench.run.executors import Task

_HEARTBEAT_SECONDS = 30.0


class Reporter:
    """Shows the progress of one run. No method waits or raises.

    Args:
        stream: where to write; stderr if None.
        quiet: show warnings only.
    """

    def __init__(self, stream: Any = None, *, quiet: bool = False) -> None:
        # soft_wrap leaves long lines (paths, reasons) whole, for grep and for copying.
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._quiet = quiet
        self._bar: Progress | None = None
        self._all: TaskID | None = None
        self._rows: dict[Task, TaskID] = {}
        self._stages: dict[Task, str] = {}
        self._left: float | None = None
        self._beat = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line, unless quiet."""
        if not self._quiet:
            self._print(clean_text(line))

    def warn(self, line: str) -> None:
        """Print a warning, even when quiet."""
        self._print(f"warning: {clean_text(line)}", style="yellow")

    def _print(self, line: str, **style: Any) -> None:
        try:
            self._console.print(line, markup=False, **style)
        except BrokenPipeError:  # whoever reads this wants no more of it, as ``head`` does
            raise
        except (OSError, ValueError):
            pass  # a method closed stderr: its cell is not done, and what follows must be

    def open(self, total: int) -> None:
        """Start the progress bar of ``total`` tasks."""
        if self._quiet or not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
        )
        self._all = self._bar.add_task("all", total=total, note="")
        self._bar.start()

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._rows, self._stages = None, {}, {}

    def running(self, task: Task, stage: str, done: int, total: int) -> None:
        """Show that a task has done ``done`` of ``total`` in a stage."""
        self._stages[task] = f"{stage} {done}/{total}" if total > 1 else stage
        if self._bar is not None:
            if task not in self._rows:
                self._rows[task] = self._bar.add_task(f"  {task.label}", total=1, note="")
            self._bar.update(
                self._rows[task], total=max(1, total), completed=done, note=stage, refresh=False
            )
        elif time.monotonic() - self._beat > _HEARTBEAT_SECONDS:
            active = ", ".join(f"{t.label} ({s})" for t, s in self._stages.items())
            self.say(f"  running {active}{self._left_text()}")
            self._beat = time.monotonic()

    def ended(self, task: Task, done: int, total: int, line: str) -> None:
        """Show that a task has ended; ``line`` says how."""
        self._stages.pop(task, None)
        row = self._rows.pop(task, None)
        if self._bar is not None:
            if row is not None:
                self._bar.remove_task(row)
            if self._all is not None:
                self._bar.update(self._all, completed=done)
        self.say(f"[{done}/{total}] {line}{'' if self._bar else self._left_text()}")
        self._beat = time.monotonic()

    def left(self, seconds: float) -> None:
        """Show the present estimate of the seconds left."""
        self._left = seconds
        if self._bar is not None and self._all is not None:
            self._bar.update(self._all, note=f"about {minutes(seconds)} left", refresh=False)

    def _left_text(self) -> str:
        return f", about {minutes(self._left)} left" if self._left else ""
