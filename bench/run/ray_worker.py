"""The part of a Ray run that lives in a worker process."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from quantarena.bench.run.attempt import attempt
from quantarena.bench.run.executors import Outcome, Setting, Task

_NOTE_SECONDS = 0.25
"""Least time between two notes of one stage."""


class Worker:
    """An object in a worker process that does one task after another; Ray makes an actor of it.

    Args:
        setting: settings of the run.
        note: file in which the worker says how far its task is.
    """

    def __init__(self, setting: Setting, note: str) -> None:
        # Ctrl-C reaches the whole process group; only the driver decides what it means.
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._setting = setting
        self._note = Path(note)

    def pid(self) -> int:
        """The id of the worker's process; the answer comes once the process is up."""
        return os.getpid()

    def do(self, task: Task) -> Outcome:
        """Do a task. Its stage and progress are written to the note file."""
        progress = spaced(self._write, _NOTE_SECONDS)
        progress("starting", 0, 1)
        return attempt(task, self._setting, progress)

    def _write(self, stage: str, done: int, total: int) -> None:
        with contextlib.suppress(OSError):
            draft = self._note.with_suffix(".tmp")
            draft.write_text(json.dumps([stage, done, total]), encoding="utf-8")
            draft.replace(self._note)


def spaced(
    tell: Callable[[str, int, int], None], seconds: float
) -> Callable[[str, int, int], None]:
    """The function, called at most that often while a stage goes on; its ends are always told."""
    last = [("", 0.0)]

    def progress(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage == last[0][0] and now - last[0][1] < seconds and done < total:
            return
        last[0] = (stage, now)
        tell(stage, done, total)

    return progress
