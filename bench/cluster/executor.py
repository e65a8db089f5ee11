"""The executor that runs tasks on the nodes of a Ray cluster, as they come and go.

Each worker reserves what it needs. A task whose worker or node dies is done once more, elsewhere.
Timings reserve all CPUs of a node, and one of its GPUs where networks run on one.
"""

import contextlib
import json
import os
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantarena.bench.cluster import travel, worker
from quantarena.bench.cluster.members import Member, Members
from quantarena.bench.cluster.members import Pool as Pool
from quantarena.bench.cluster.nodes import placed
from quantarena.bench.cluster.session import join_ray
from quantarena.bench.errors import one_line
from quantarena.bench.files import TEMPORARY, work_folder
from quantarena.bench.plan.lookup import KERNELS
from quantarena.bench.run.executors import START_LIMIT, Listener, Outcome, Setting, Task, where
from quantarena.bench.schema import Status

_POLL_SECONDS = 0.25
_TELL_SECONDS = 1.0
_LATE_SECONDS = 60.0
"""After which people are told that a worker has not started; then every ten times as long."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class _Work:
    """A task, when it was taken, and what happened to its first try."""

    task: Task
    began: float
    notes: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class _Slot:
    """A worker on a node, and its present task.

    Attributes:
        actor: Ray's handle of the worker.
        member: its node.
        key: under which it says how far its task is.
        hello: Ray's handle of its first sign of life.
        ready: whether it has given that.
        since: when the worker was asked for, and once its process runs, when that was seen.
        placed: whether its process runs.
        told: when people were told last that it does not start.
        work: the present task; None for an idle worker.
        reference: Ray's handle of the task's outcome.
        working: when the worker first said how far the task is; None until then.
        reported: last (stage, done, total) that the listener was told.
    """

    actor: Any
    member: Member
    key: bytes
    hello: Any
    ready: bool = False
    since: float = field(default_factory=time.monotonic)
    placed: bool = False
    told: float = 0.0
    work: _Work | None = None
    reference: Any = None
    working: float | None = None
    reported: tuple[str, int, int] = ("", 0, 0)


class ClusterExecutor:
    """Runs tasks on a cluster's nodes.

    Args:
        setting: settings of the run; its folders are shared by all nodes.
        listener: told of progress.
        pool: what is asked of the cluster.
        timeout: seconds that a task may take; 0 is no limit.
        say: told of nodes that join, leave or cannot take part, and of tasks that start again.
    """

    def __init__(
        self,
        setting: Setting,
        listener: Listener,
        pool: Pool,
        timeout: float = 0.0,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._pool, self._listener, self._timeout, self._say = pool, listener, timeout, say
        self._run = uuid.uuid4().hex[:12]
        self._slots: list[_Slot] = []
        self._waiting: deque[_Work] = deque()
        self._count, self._told = 0, 0.0
        results = Path(setting.results)
        results.mkdir(parents=True, exist_ok=True)
        self._token = results / f".driver-{self._run}"
        with work_folder(Path(tempfile.gettempdir()), TEMPORARY) as folder:
            self._bags = travel.packed(setting.plugins, folder)
            self._setting = replace(setting, plugins=self._bags.plugins)
            named = {name: os.environ[name] for name in (KERNELS,) if os.environ.get(name)}
            environment = {"py_modules": list(self._bags.folders), "env_vars": named}
            self._ray = join_ray(pool.address, environment)
        self._token.touch()
        asked = worker.asked_here(results, self._token.name, pool.models)
        self._members = Members(self._ray, pool, asked, say)
        options = {"max_restarts": 0, "max_task_retries": 0}
        self._actor = self._ray.remote(**options)(worker.ClusterWorker)

    @property
    def slots(self) -> int:
        """Workers that are ready; at least 1, so that a task waits for the first of them."""
        return max(1, sum(slot.ready for slot in self._slots))

    def start(self, task: Task) -> None:
        """Take a task; it goes to the next worker that is idle."""
        self._waiting.append(_Work(task, time.monotonic()))

    def wait(self) -> Outcome:
        """Wait for the next task to end: by itself, at its timeout, or by a second death.

        Raises:
            UserError: no node takes part.
            RunStopped: the cluster is lost.
        """
        while True:
            self._members.look()
            self._grow()
            self._hand_out()
            if (outcome := self._next()) is not None:
                return outcome

    def close(self) -> None:
        """Stop this run's workers and leave the cluster, which goes on."""
        for slot in tuple(self._slots):
            self._dismiss(slot)
        with contextlib.suppress(Exception):
            self._ray.shutdown()
        with contextlib.suppress(OSError):
            self._token.unlink()

    def _grow(self) -> None:
        """Give nodes the workers that they have room for and lack."""
        room = self._members.room()
        for slot in [slot for slot in self._slots if slot.work is None]:
            if not self._members.has(slot.member):
                self._dismiss(slot)
        lacking = placed(room, self._pool.most)
        for slot in self._slots:
            name = slot.member.node.id
            lacking[name] = lacking.get(name, 0) - 1
        for name, number in lacking.items():
            self._slots += [self._new_slot(name) for _ in range(number)]
        self._members.require_hope(workers=bool(self._slots))

    def _new_slot(self, name: str) -> _Slot:
        self._count += 1
        key = f"{self._run}/{self._count}".encode()
        member, need = self._members.place(name)
        threads = self._pool.target.threads if self._pool.timing else 1
        actor = self._actor.options(
            num_cpus=need.cpus,
            num_gpus=need.gpus,
            memory=need.memory or None,
            scheduling_strategy=self._members.at(member.node),
            runtime_env={"env_vars": dict.fromkeys(_THREADS, str(threads))},
        ).remote(self._setting, self._bags.bundle, self._bags.metrics, key)
        return _Slot(actor, member, key, actor.pid.remote())

    def _hand_out(self) -> None:
        for slot in self._slots:
            if self._waiting and slot.ready and slot.work is None:
                slot.work = self._waiting.popleft()
                slot.working, slot.reported = None, ("", 0, 0)
                self._forget(slot)
                slot.reference = slot.actor.do.remote(slot.work.task)

    def _next(self) -> Outcome | None:
        """Wait a moment; the outcome of a task that has ended meanwhile."""
        members = self._members.asked
        starting = {slot.hello: slot for slot in self._slots if not slot.ready}
        busy = {slot.reference: slot for slot in self._slots if slot.work is not None}
        references = [*busy, *starting, *members]
        if not references:
            time.sleep(_POLL_SECONDS)
            return None
        ready, _ = self._ray.wait(references, num_returns=1, timeout=_POLL_SECONDS)
        self._tell(busy.values(), [slot for slot in starting.values() if slot.hello not in ready])
        for reference in ready:
            if reference in members:
                self._members.answered(members[reference])
            elif reference in starting:
                self._started(starting[reference])
            else:
                return self._collect(busy[reference])
        return next(filter(None, map(self._overdue, busy.values())), None)

    def _started(self, slot: _Slot) -> None:
        try:
            self._ray.get(slot.hello)
            slot.ready, slot.member.failures = True, 0
            self._forget(slot)
        except Exception as error:
            self._dismiss(slot)
            self._members.failed(slot.member, error)

    def _collect(self, slot: _Slot) -> Outcome | None:
        """The outcome of a task; None where it is done once more."""
        work, exceptions = slot.work, self._ray.exceptions
        assert work is not None
        try:
            outcome: Outcome = self._ray.get(slot.reference)
        except exceptions.OutOfMemoryError:
            return self._ended(slot, Status.OOM, f"killed by Ray for memory{where(slot.reported)}")
        except exceptions.RayTaskError as error:
            return self._ended(slot, Status.FAILED, one_line(error) + where(slot.reported))
        except exceptions.RayError as error:
            return self._lost(slot, error)
        # The task came back as a copy; the caller knows its own.
        outcome = replace(outcome, task=work.task, notes=(*work.notes, *outcome.notes))
        slot.work = None
        if outcome.lasting:
            self._dismiss(slot)
        return outcome

    def _lost(self, slot: _Slot, error: Exception) -> Outcome | None:
        """A worker died. Its task is done once more, unless memory ran out."""
        work, member = slot.work, slot.member
        assert work is not None
        lives = self._members.lives(member)
        low = "running low on memory" in str(error)
        if lives and (low or self._members.memory_ran_out(member)):
            reason = f"the worker was killed because memory ran out{where(slot.reported)}"
            return self._ended(slot, Status.OOM, reason)
        reason = f"its {'worker on ' if lives else ''}node {member.name} died{where(slot.reported)}"
        if work.notes:
            return self._ended(slot, Status.FAILED, f"{reason}; {work.notes[0]}")
        self._dismiss(slot)
        note = f"done twice: at the first try {reason}"
        self._waiting.appendleft(replace(work, notes=(note,)))
        self._say(f"  {work.task.label}: {reason}; it starts again")
        return None

    def _ended(self, slot: _Slot, status: Status, reason: str) -> Outcome:
        """The outcome of a task whose worker is not used any more."""
        work = slot.work
        assert work is not None
        self._dismiss(slot)
        seconds = time.monotonic() - work.began
        return Outcome(work.task, status, seconds, reason=reason, notes=work.notes)

    def _overdue(self, slot: _Slot) -> Outcome | None:
        if not self._timeout or slot.work is None or slot.working is None:
            return None
        if time.monotonic() - slot.working <= self._timeout:
            return None
        reason = f"stopped after {self._timeout:.0f} s{where(slot.reported)}"
        return self._ended(slot, Status.TIMEOUT, reason)

    def _dismiss(self, slot: _Slot) -> None:
        """End a worker; the node gets another when there is work."""
        if slot in self._slots:
            self._slots.remove(slot)
        with contextlib.suppress(Exception):
            self._ray.kill(slot.actor)
        self._forget(slot)

    def _forget(self, slot: _Slot) -> None:
        """Delete what a worker said of its last task."""
        from ray.experimental.internal_kv import _internal_kv_del

        with contextlib.suppress(Exception):
            _internal_kv_del(slot.key, namespace=worker.NAMESPACE)

    def _tell(self, busy: Iterable[_Slot], starting: Iterable[_Slot]) -> None:
        """Tell the listener how far tasks are, and people which workers do not start."""
        now = time.monotonic()
        if now - self._told < _TELL_SECONDS:
            return
        self._told = now
        for slot in starting:
            self._press(slot, now)
        for slot in busy:
            said = self._said(slot)
            if not said or slot.work is None:
                continue
            stage, done, total = json.loads(said)
            slot.working = slot.working or now
            if (stage, done, total) != slot.reported:
                slot.reported = (stage, done, total)
                self._listener(slot.work.task, stage, done, total)

    def _press(self, slot: _Slot, now: float) -> None:
        """What to do about a worker that is not ready: wait for room, but not for a hung process.

        Room may come late, since other runs and other programs reserve it: timings of a run wait
        until the last cell of another one is done.
        """
        if not slot.placed and now - slot.since > _LATE_SECONDS and self._said(slot):
            slot.placed, slot.since = True, now
        if slot.placed and now - slot.since > START_LIMIT:
            self._dismiss(slot)
            silent = TimeoutError(f"no sign of life in {START_LIMIT:.0f} s")
            self._members.failed(slot.member, silent)
        elif not slot.placed and now - max(slot.since, slot.told) > _LATE_SECONDS:
            slot.told = now + 9 * _LATE_SECONDS
            self._say(
                f"  a worker waits for room on node {slot.member.name} since "
                f"{now - slot.since:.0f} s: other programs reserve it ('ray status' shows how much)"
            )

    def _said(self, slot: _Slot) -> bytes | None:
        """The worker's last note of how far it is."""
        from ray.experimental.internal_kv import _internal_kv_get

        with contextlib.suppress(Exception):
            said: bytes | None = _internal_kv_get(slot.key, namespace=worker.NAMESPACE)
            return said
        return None
