"""When a graph of stages is done with so many workers: a simulation of the runner's own rules.

A worker takes the first task that waits for nothing: shared stages in their order, then cells in
the order in which these end, of one group those that take longest first. Latencies come after all
cells, one at a time on each machine. The driver hands out tasks and writes rows by itself, one
after the other: what it takes for each is a cost that no further worker shortens.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

from quantarena.bench.plan.dag import Dag

TIMING = "time:"


@dataclass(frozen=True, slots=True)
class Costs:
    """What a run costs beside its stages.

    Attributes:
        start: seconds until the workers have started.
        task: seconds of the driver for each task: handing it out, its row, its progress.
        trip: seconds that a worker spends on the store for each task, beside the stage itself.
        end: seconds of the page at the end.
    """

    start: float = 0.0
    task: float = 0.0
    trip: float = 0.0
    end: float = 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a run goes.

    Attributes:
        seconds: from its start to its end.
        cells: seconds until all cells are done, latencies left out.
        timing: seconds of latencies after that.
        busy: share of the workers' time, until all cells are done, in which they compute.
        driver: share of that time in which the driver is busy.
        waits: mean seconds that a finished task waits for the driver.
    """

    seconds: float
    cells: float
    timing: float
    busy: float
    driver: float
    waits: float


@dataclass(slots=True)
class _Queue:
    """Tasks that wait for others, and those that are ready, by the runner's order."""

    left: dict[str, set[str]]
    rank: Mapping[str, tuple[int, float, int]]
    ready: list[tuple[int, int, float, int, str]] = field(default_factory=list)
    users: dict[str, list[str]] = field(default_factory=dict)
    ended: int = 0

    def __post_init__(self) -> None:
        for task, needs in self.left.items():
            for need in needs:
                self.users.setdefault(need, []).append(task)
            if not needs:
                self._push(task)

    def done(self, task: str) -> None:
        """Free the tasks that waited for this one alone; they come after those that are free."""
        self.ended += 1
        for user in self.users.get(task, ()):
            self.left[user].discard(task)
            if not self.left[user]:
                self._push(user)

    def _push(self, task: str) -> None:
        kind, length, number = self.rank[task]
        heapq.heappush(self.ready, (kind, self.ended if kind else 0, length, number, task))


def simulate(dag: Dag, workers: int, costs: Costs | None = None, machines: int = 1) -> Schedule:
    """Run a graph by the clock alone.

    Args:
        dag: what is left to do.
        workers: that share the tasks.
        costs: beside the stages; none by default.
        machines: that measure latencies, one at a time each.
    """
    costs = costs or Costs()
    tasks, waits = dag.tasks(), dag.waits()
    cells = {task: seconds for task, seconds in tasks.items() if not task.startswith(TIMING)}
    timings = [seconds for task, seconds in tasks.items() if task.startswith(TIMING)]
    end, busy, driver, waited = _cells(cells, waits, workers, costs)
    free = [end] * max(1, machines)
    heapq.heapify(free)
    for seconds in timings:
        heapq.heapreplace(free, free[0] + seconds + costs.task + costs.trip)
    timed = max(free) if timings else end
    total = timed + (costs.end if tasks else 0.0) + (costs.start if tasks else 0.0)
    span = end * max(1, workers)
    return Schedule(
        total,
        end,
        timed - end,
        busy / span if span else 0.0,
        driver / end if end else 0.0,
        waited / len(cells) if cells else 0.0,
    )


def _cells(
    tasks: Mapping[str, float], waits: Mapping[str, set[str]], workers: int, costs: Costs
) -> tuple[float, float, float, float]:
    """End of the last task; seconds of work, of the driver, and of waiting for it."""
    order = enumerate(tasks.items())
    rank = {
        task: (0, 0.0, number) if task.startswith("prepare:") else (1, -seconds, number)
        for number, (task, seconds) in order
    }
    queue = _Queue({task: {n for n in waits.get(task, ()) if n in tasks} for task in tasks}, rank)
    running: list[tuple[float, str]] = []
    idle, now, driver_free = workers, 0.0, 0.0
    busy = driver = waited = 0.0
    while queue.ready or running:
        while queue.ready and idle:
            *_, task = heapq.heappop(queue.ready)
            seconds = tasks[task] + costs.trip
            heapq.heappush(running, (max(now, driver_free) + seconds, task))
            idle, busy = idle - 1, busy + seconds
        ended, task = heapq.heappop(running)
        # The driver writes the row of one task after the other, and then hands out the next.
        began = max(ended, driver_free)
        waited += began - ended
        driver_free = now = began + costs.task
        driver += costs.task
        idle += 1
        queue.done(task)
    return now, busy, driver, waited
