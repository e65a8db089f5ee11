"""The executor that runs tasks in the present process, one at a time."""

from quantarena.bench.run.attempt import attempt
from quantarena.bench.run.executors import Listener, Outcome, Setting, Task


class LocalExecutor:
    """Runs tasks in this process, one at a time: for short runs and for debugging."""

    slots = 1

    def __init__(self, setting: Setting, listener: Listener, timeout: float = 0.0) -> None:
        self._setting = setting
        self._listener = listener
        self._timeout = timeout
        self._waiting: Task | None = None

    def start(self, task: Task) -> None:
        """Keep the task until ``wait`` runs it."""
        assert self._waiting is None, "one task at a time"
        self._waiting = task

    def wait(self) -> Outcome:
        """Run the task and return its outcome."""
        task, self._waiting = self._waiting, None
        assert task is not None, "nothing to wait for"
        return attempt(
            task,
            self._setting,
            lambda stage, done, total: self._listener(task, stage, done, total),
            self._timeout,
        )

    def close(self) -> None:
        """Do nothing: this executor holds nothing."""
