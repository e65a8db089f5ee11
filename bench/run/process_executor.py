"""The executor that runs tasks in one child process, which has the machine to itself.

Latency is measured there after the cells have run in parallel. Timing runs native code: in a child
process a crash or a hang costs one number only.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from quantarena.bench.run.attempt import attempt
from quantarena.bench.run.executors import Listener, Outcome, Setting, Task
from quantarena.bench.schema import Status

_POLL_SECONDS = 0.25


class AloneExecutor:
    """Runs one task at a time in a child process, which is replaced when it dies or hangs."""

    slots = 1

    def __init__(self, setting: Setting, listener: Listener, timeout: float = 0.0) -> None:
        self._setting = setting
        self._listener = listener
        self._timeout = timeout
        self._context = multiprocessing.get_context("spawn")
        self._child: Any = None
        self._pipe: Connection | None = None
        self._task: Task | None = None
        self._began = 0.0

    def start(self, task: Task) -> None:
        """Send the task to the child process, which is started if there is none."""
        assert self._task is None, "one task at a time"
        if self._pipe is None:
            self._pipe, theirs = self._context.Pipe()
            arguments = (theirs, self._setting)
            self._child = self._context.Process(target=_serve, args=arguments, daemon=True)
            self._child.start()
            # With our copy closed, the child's death is an end of file here.
            theirs.close()
        self._task, self._began = task, time.monotonic()
        with contextlib.suppress(OSError):
            self._pipe.send(task)

    def wait(self) -> Outcome:
        """Wait for the task's outcome; report progress meanwhile."""
        task, pipe = self._task, self._pipe
        assert task is not None, "nothing to wait for"
        assert pipe is not None
        while True:
            seconds = time.monotonic() - self._began
            if self._timeout and seconds > self._timeout:
                self.close()
                reason = f"stopped after {self._timeout:.0f} s"
                return Outcome(task, Status.TIMEOUT, seconds, reason=reason)
            try:
                message = pipe.recv() if pipe.poll(_POLL_SECONDS) else None
            except (EOFError, OSError):
                self.close()
                reason = "the timing process died (killed, or a crash in native code)"
                return Outcome(task, Status.FAILED, seconds, reason=reason)
            if isinstance(message, Outcome):
                self._task = None
                if message.lasting:
                    self.close()
                return replace(message, task=task)
            if message is not None:
                self._listener(task, *message)

    def close(self) -> None:
        """Kill the child process."""
        if self._child is not None:
            self._child.kill()
            self._child.join()
        if self._pipe is not None:
            self._pipe.close()
        self._child = self._pipe = self._task = None


def _serve(pipe: Connection, setting: Setting) -> None:
    """Do tasks in the child process until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a method prints must not end up in the driver's output, which may be JSON.
    os.dup2(2, 1)

    def progress(stage: str, done: int, total: int) -> None:
        with contextlib.suppress(OSError):
            pipe.send((stage, done, total))

    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(attempt(pipe.recv(), setting, progress))
