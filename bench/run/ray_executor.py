"""Cells over Ray's workers: long-lived processes of one torch thread each.

A worker that dies (killed for memory, a crash in native code) or that is over its time costs its
own cell only: the cell gets a row that says so, and a new worker takes the place.
"""

import contextlib
import json
import logging
import os
import signal
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantarena.bench import machine
from quantarena.bench.errors import UserError, one_line
from quantarena.bench.run.executors import Listener, Outcome, Setting, Task, attempt
from quantarena.bench.schema import Status

OBJECT_STORE_BYTES = 200 * 1024 * 1024
START_SECONDS = 600.0
_POLL_SECONDS = 0.25
# Two threads of two workers on two cores are far slower than one thread each.
_THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
_QUIET = {
    # Ray runs workers at niceness 15 otherwise, which starves them beside anything else.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    # Its handler would turn a SIGTERM of the driver into an abort with a stack trace.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
}


class Worker:
    """What lives in a worker process; Ray makes an actor of it."""

    def __init__(self, setting: Setting, note: str) -> None:
        # Ctrl-C reaches the whole process group; only the driver decides what it means.
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._setting = setting
        self._note = Path(note)

    def pid(self) -> int:
        """Of this worker's process; answered once it is up."""
        return os.getpid()

    def do(self, task: Task) -> Outcome:
        """Do a task, noting in a small file how far it is."""
        last = [("", 0.0)]

        def progress(stage: str, done: int, total: int) -> None:
            now = time.monotonic()
            if stage == last[0][0] and now - last[0][1] < _POLL_SECONDS and done < total:
                return
            last[0] = (stage, now)
            with contextlib.suppress(OSError):
                draft = self._note.with_suffix(".tmp")
                draft.write_text(json.dumps([stage, done, total]), encoding="utf-8")
                draft.replace(self._note)

        progress("starting", 0, 1)
        return attempt(task, self._setting, progress)


@dataclass(slots=True)
class _Slot:
    """One place for a worker, its current task and how far that is."""

    actor: Any
    note: Path
    task: Task | None = None
    reference: Any = None
    began: float = 0.0
    working: float | None = None
    seen: tuple[str, int, int] = ("", 0, 0)


class RayExecutor:
    """Tasks over ``slots`` workers of a private, local Ray."""

    def __init__(
        self, setting: Setting, listener: Listener, workers: int, timeout: float = 0.0
    ) -> None:
        self.slots = workers
        self._setting = setting
        self._listener = listener
        self._timeout = timeout
        self._notes = tempfile.TemporaryDirectory(prefix="quantarena-")
        self._ray = _start_ray(workers)
        self._kills = machine.oom_kills()
        self._spawned = 0
        self._actor_class = self._ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Worker)
        self._slots = [self._new_slot() for _ in range(workers)]

    def start(self, task: Task) -> None:
        """Give the task to an idle worker."""
        slot = next(slot for slot in self._slots if slot.task is None)
        slot.task, slot.began, slot.working = task, time.monotonic(), None
        slot.seen = ("", 0, 0)
        slot.note.unlink(missing_ok=True)
        slot.reference = slot.actor.do.remote(task)

    def wait(self) -> Outcome:
        """The next task to end, by itself, by its time or by its worker's death."""
        while True:
            busy = {slot.reference: slot for slot in self._slots if slot.task is not None}
            assert busy, "nothing to wait for"
            ready, _ = self._ray.wait(list(busy), num_returns=1, timeout=_POLL_SECONDS)
            for slot in busy.values():
                self._report(slot)
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
        self._notes.cleanup()

    def _overdue(self, slot: _Slot) -> str | None:
        """Why a task has to be stopped; the start of its worker does not count as its time."""
        now = time.monotonic()
        if slot.working is None:
            late = now - slot.began > START_SECONDS
            return f"its worker did not start in {START_SECONDS:.0f} s" if late else None
        late = bool(self._timeout) and now - slot.working > self._timeout
        return f"stopped after {self._timeout:.0f} s{_where(slot)}" if late else None

    def _new_slot(self) -> _Slot:
        self._spawned += 1
        note = Path(self._notes.name) / f"{self._spawned}.json"
        actor = self._actor_class.options(runtime_env={"env_vars": _THREADS}).remote(
            self._setting, str(note)
        )
        return _Slot(actor, note)

    def _collect(self, slot: _Slot) -> Outcome:
        exceptions = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(slot.reference)
        except exceptions.OutOfMemoryError:
            return self._replace(slot, Status.OOM, f"killed by Ray for memory{_where(slot)}")
        except (exceptions.RayActorError, exceptions.WorkerCrashedError) as error:
            status, reason = self._cause_of_death(error)
            return self._replace(slot, status, reason + _where(slot))
        except exceptions.RayError as error:
            return self._replace(slot, Status.FAILED, one_line(error) + _where(slot))
        assert slot.task is not None
        # The task came back as a copy; the caller knows its own.
        outcome = replace(outcome, task=slot.task)
        slot.task = None
        return outcome

    def _cause_of_death(self, error: Exception) -> tuple[Status, str]:
        """Out of memory where the kernel or Ray say so; a plain death otherwise."""
        kills, before = machine.oom_kills(), self._kills
        self._kills = kills
        if kills > before or "running low on memory" in str(error):
            return Status.OOM, "the worker was killed because memory ran out"
        return Status.FAILED, "the worker process died (killed, or a crash in native code)"

    def _replace(self, slot: _Slot, status: Status, reason: str) -> Outcome:
        task, seconds = slot.task, time.monotonic() - slot.began
        assert task is not None
        with contextlib.suppress(Exception):
            self._ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = self._new_slot()
        return Outcome(task, status, seconds, reason=reason)

    def _report(self, slot: _Slot) -> None:
        with contextlib.suppress(OSError, ValueError):
            stage, done, total = json.loads(slot.note.read_text(encoding="utf-8"))
            if slot.working is None:
                slot.working = time.monotonic()
            if (stage, done, total) != slot.seen and slot.task is not None:
                slot.seen = (stage, done, total)
                self._listener(slot.task, stage, done, total)


def _where(slot: _Slot) -> str:
    stage, done, total = slot.seen
    if not stage:
        return " before its first stage"
    return f" in stage {stage}" + (f" ({done} of {total})" if total > 1 else "")


def _start_ray(workers: int) -> Any:
    """A private Ray of this run, silent, that ends with it.

    Raises:
        UserError: Ray cannot be started here.
    """
    os.environ.update(_QUIET)
    on_terminate = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import ray

            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                object_store_memory=OBJECT_STORE_BYTES,
            )
        except Exception as error:
            raise UserError(
                f"Ray could not start its workers: {one_line(error)}; "
                "run in this process instead with --executor local"
            ) from error
    with contextlib.suppress(ValueError):
        # Ray takes SIGTERM for itself; the command line means to end a run in its own words.
        signal.signal(signal.SIGTERM, on_terminate)
    with contextlib.suppress(AttributeError):
        # Ray prints a paragraph on stdout for each worker that dies; its cell's row says why.
        ray._private.worker._worker_logs_enabled = False
    return ray
