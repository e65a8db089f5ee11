"""The executor that runs tasks in several worker processes, which Ray starts and watches.

A worker has one torch thread and lives as long as the run. If a worker dies (killed for memory, a
crash in native code) or exceeds its time, only its present cell is lost: that cell gets a row with
the reason, and a new worker takes the place.
"""

import contextlib
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantarena.bench import machine
from quantarena.bench.errors import one_line
from quantarena.bench.files import TEMPORARY, work_folder
from quantarena.bench.run.executors import (
    START_LIMIT,
    Listener,
    Outcome,
    Setting,
    Task,
    where,
)
from quantarena.bench.run.ray_session import require_alive, start_ray
from quantarena.bench.run.ray_worker import Worker
from quantarena.bench.schema import Status

_POLL_SECONDS = 0.25
# Two threads of two workers on two cores are far slower than one thread each.
_THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


@dataclass(slots=True)
class _Slot:
    """A worker, its present task and how far the task is.

    Attributes:
        actor: Ray's handle of the worker.
        note: file in which the worker writes its progress.
        task: the present task; None for an idle worker.
        reference: Ray's handle of the task's outcome.
        began: when the task was handed over, by the monotonic clock.
        working: when the worker first wrote a note for it; None until then.
        reported: last (stage, done, total) that the listener was told.
    """

    actor: Any
    note: Path
    task: Task | None = None
    reference: Any = None
    began: float = 0.0
    working: float | None = None
    reported: tuple[str, int, int] = ("", 0, 0)


class RayExecutor:
    """Runs up to ``slots`` tasks at a time, one in each worker of a private Ray on this machine.

    Args:
        setting: settings of the run.
        listener: told of progress.
        workers: number of worker processes.
        timeout: seconds that a task may take; 0 is no limit.
    """

    def __init__(
        self, setting: Setting, listener: Listener, workers: int, timeout: float = 0.0
    ) -> None:
        self.slots = workers
        self._setting = setting
        self._listener = listener
        self._timeout = timeout
        self._stack = contextlib.ExitStack()
        temporary = Path(tempfile.gettempdir())
        self._notes = self._stack.enter_context(work_folder(temporary, TEMPORARY))
        try:
            self._ray = start_ray(workers)
        except BaseException:
            self._stack.close()
            raise
        self._kills = machine.oom_kills()
        self._spawned = 0
        self._actor_class = self._ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Worker)
        self._slots = [self._new_slot() for _ in range(workers)]

    def start(self, task: Task) -> None:
        """Hand the task to an idle worker."""
        slot = next(slot for slot in self._slots if slot.task is None)
        slot.task, slot.began, slot.working = task, time.monotonic(), None
        slot.reported = ("", 0, 0)
        slot.note.unlink(missing_ok=True)
        slot.reference = slot.actor.do.remote(task)

    def wait(self) -> Outcome:
        """Wait for the next task to end: by itself, at its timeout, or by its worker's death.

        Raises:
            RunStopped: Ray itself died, and no worker can be started any more.
        """
        while True:
            busy = {slot.reference: slot for slot in self._slots if slot.task is not None}
            assert busy, "nothing to wait for"
            require_alive(self._ray)
            ready, _ = self._ray.wait(list(busy), num_returns=1, timeout=_POLL_SECONDS)
            for slot in busy.values():
                self._report(slot)
            # Of a dead Ray, each worker ends as if it had failed by itself.
            require_alive(self._ray)
            if ready:
                return self._collect(busy[ready[0]])
            for slot in busy.values():
                if (overdue := self._overdue(slot)) is not None:
                    return self._replace(slot, Status.TIMEOUT, overdue)

    def close(self) -> None:
        """Kill the workers and stop Ray."""
        for slot in self._slots:
            with contextlib.suppress(Exception):
                self._ray.kill(slot.actor)
        with contextlib.suppress(Exception):
            self._ray.shutdown()
        self._stack.close()

    def _overdue(self, slot: _Slot) -> str | None:
        """The reason to stop a task, or None. The time of the worker's start does not count."""
        now = time.monotonic()
        if slot.working is None:
            late = now - slot.began > START_LIMIT
            return f"its worker did not start in {START_LIMIT:.0f} s" if late else None
        late = bool(self._timeout) and now - slot.working > self._timeout
        return f"stopped after {self._timeout:.0f} s{where(slot.reported)}" if late else None

    def _new_slot(self) -> _Slot:
        self._spawned += 1
        note = self._notes / f"{self._spawned}.json"
        actor = self._actor_class.options(runtime_env={"env_vars": _THREADS}).remote(
            self._setting, str(note)
        )
        return _Slot(actor, note)

    def _collect(self, slot: _Slot) -> Outcome:
        exceptions = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(slot.reference)
        except exceptions.OutOfMemoryError:
            return self._replace(
                slot, Status.OOM, f"killed by Ray for memory{where(slot.reported)}"
            )
        except (exceptions.RayActorError, exceptions.WorkerCrashedError) as error:
            status, reason = self._cause_of_death(error)
            return self._replace(slot, status, reason + where(slot.reported))
        except exceptions.RayError as error:
            return self._replace(slot, Status.FAILED, one_line(error) + where(slot.reported))
        assert slot.task is not None
        # The task came back as a copy; the caller knows its own.
        outcome = replace(outcome, task=slot.task)
        if outcome.lasting:
            self._renew(slot)
        slot.task = None
        return outcome

    def _cause_of_death(self, error: Exception) -> tuple[Status, str]:
        """Status and reason of a worker's death: out of memory if the kernel or Ray says so."""
        kills, before = machine.oom_kills(), self._kills
        self._kills = kills
        if kills > before or "running low on memory" in str(error):
            return Status.OOM, "the worker was killed because memory ran out"
        return Status.FAILED, "the worker process died (killed, or a crash in native code)"

    def _replace(self, slot: _Slot, status: Status, reason: str) -> Outcome:
        task, seconds = slot.task, time.monotonic() - slot.began
        assert task is not None
        self._renew(slot)
        return Outcome(task, status, seconds, reason=reason)

    def _renew(self, slot: _Slot) -> None:
        """Put a new worker in a worker's place."""
        with contextlib.suppress(Exception):
            self._ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = self._new_slot()

    def _report(self, slot: _Slot) -> None:
        with contextlib.suppress(OSError, ValueError):
            stage, done, total = json.loads(slot.note.read_text(encoding="utf-8"))
            if slot.working is None:
                slot.working = time.monotonic()
            if (stage, done, total) != slot.reported and slot.task is not None:
                slot.reported = (stage, done, total)
                self._listener(slot.task, stage, done, total)
