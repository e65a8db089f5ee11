"""The tasks of a run that have not begun, and which of them are this driver's to do.

Several drivers may work on one results folder. Each takes the lease of a task before it starts it.
A task whose lease another driver has goes to the end of the queue; it is asked for again until it
is done there, or the other driver has died.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from quantarena.bench.run.executors import Task
from quantarena.bench.storage.leases import Lease, Leases

ASK_SECONDS = 1.0
"""Between two questions for the lease of one task."""


class Claims(Protocol):
    """Which tasks are this driver's to do."""

    def take(self, task: Task) -> bool:
        """Claim a task; False while another driver has it."""

    def ours(self, task: Task) -> bool:
        """Whether a claimed task is still this driver's: one that slept too long has lost it."""

    def release(self, task: Task) -> None:
        """Give a task up, done or not."""


class NoOthers:
    """The claims of a driver that shares its folder with nobody."""

    def take(self, task: Task) -> bool:
        """True: nobody else has it."""
        return True

    def ours(self, task: Task) -> bool:
        """True: nobody else has it."""
        return True

    def release(self, task: Task) -> None:
        """Do nothing."""


class LeasedClaims:
    """Claims that are leases.

    Args:
        leases: of the results folder.
    """

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._held: dict[str, Lease] = {}

    def take(self, task: Task) -> bool:
        """Claim a task; False while another driver has it."""
        lease = self._leases.take(lease_name(task))
        if lease is not None:
            self._held[lease.name] = lease
        return lease is not None

    def ours(self, task: Task) -> bool:
        """Whether the record of the lease is still this driver's, seen now."""
        lease = self._held.get(lease_name(task))
        return lease is not None and self._leases.ours(lease)

    def release(self, task: Task) -> None:
        """Give a task up, done or not."""
        lease = self._held.pop(lease_name(task), None)
        if lease is not None:
            self._leases.release(lease)


def lease_name(task: Task) -> str:
    """The name of a task's lease. Cells of one shared key have one task of shared stages."""
    return f"{task.kind}-{task.cell.shared_key if task.kind == 'prepare' else task.cell.key}"


class Work:
    """Tasks in their order, without those that other drivers have done or are doing.

    Args:
        tasks: the first tasks.
        claims: which of them are ours.
        settled: called with a task that was just claimed; True if another driver has done it
            meanwhile, and nothing is left to do.
    """

    def __init__(
        self, tasks: Iterable[Task], claims: Claims, settled: Callable[[Task], bool]
    ) -> None:
        self._tasks = deque(tasks)
        self._claims = claims
        self._settled = settled
        self._asked: dict[Task, float] = {}

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def extend(self, tasks: Iterable[Task]) -> None:
        """Add tasks at the end."""
        self._tasks.extend(tasks)

    def next(self) -> Task | None:
        """The next task that is ours to do, None while all are with other drivers."""
        for _ in range(len(self._tasks)):
            task, now = self._tasks.popleft(), time.monotonic()
            if now - self._asked.get(task, -ASK_SECONDS) < ASK_SECONDS:
                self._tasks.append(task)
                continue
            if not self._claims.take(task):
                self._asked[task] = now
                self._tasks.append(task)
                continue
            self._asked.pop(task, None)
            if not self._settled(task):
                return task
            self._claims.release(task)
        return None

    def pause(self) -> None:
        """Wait a little: everything that is left is with other drivers."""
        if self._tasks:
            time.sleep(ASK_SECONDS / 2)
