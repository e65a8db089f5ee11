"""What a run would do, before anything runs: cells, what is done, minutes, disk. No torch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from quantarena.bench import machine
from quantarena.bench.plan.dag import Dag, Known, stage_dag
from quantarena.bench.plan.estimate import (
    PAGE_SECONDS,
    START_SECONDS,
    Rates,
    Sizes,
    Todo,
    memory_bytes,
    shipped,
)
from quantarena.bench.plan.past import Past
from quantarena.bench.plan.schedule import Costs, Schedule, simulate
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell, Grid
from quantarena.bench.target import Target

RAY_FROM_CELLS = 6
"""From so many missing cells up, starting Ray's workers pays off on more than one core."""

DONE = frozenset({Status.OK, Status.SKIPPED})
"""A cell that failed, timed out or ran out of memory is tried again by the next run."""

STAMP = "inputs"
"""Stage key under which a row keeps the stamp of the code and the model that made it."""


@dataclass(frozen=True, slots=True)
class Fan:
    """How cells are spread: ``local`` in this process, ``ray`` over workers, or over a cluster's.

    Attributes:
        executor: ``local``, ``ray`` or ``cluster``.
        workers: of a cluster, the number that is asked for or assumed.
        address: of the cluster.
    """

    executor: str
    workers: int
    address: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A grid against what a results folder holds already.

    Attributes:
        grid: what was asked for.
        cells: every cell of the grid.
        done: keys of cells that need nothing more but perhaps their timing.
        stale: keys of done cells whose code or model has changed since; they run again.
        todo: what will run.
        fan: how.
        seconds: estimated wall seconds.
        measured: True when the estimate rests on rows measured on this machine.
        disk: estimated bytes to be written.
        memory: estimated bytes of memory of one worker.
        stamp: hash of a cell's inputs, kept with its row.
        dag: every stage of the run, with what is shared and what is cached.
        schedule: how the run goes with its workers.
        sizes: of workloads, for estimates in mid-run.
    """

    grid: Grid
    cells: tuple[Cell, ...]
    done: frozenset[str]
    stale: frozenset[str]
    todo: Todo
    fan: Fan
    seconds: float
    measured: bool
    disk: int
    stamp: Callable[[Cell], str]
    dag: Dag
    schedule: Schedule
    sizes: Sizes = shipped
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a plan has to know about names, looked up by whoever may import registries.

    Attributes:
        stamp: hash of the code and the model that a cell's numbers depend on, or "" when unknown.
        resolution: pixels a side of a workload.
        megabytes: of a workload's weights.
        size: of a workload's network.
    """

    stamp: Callable[[Cell], str] = lambda cell: ""
    resolution: Callable[[str], int] = lambda workload: 32
    megabytes: Callable[[str], float] = lambda workload: 20.0
    size: Sizes = shipped


def make_plan(
    grid: Grid,
    rows: Iterable[Row],
    *,
    history: Iterable[Row] = (),
    facts: Facts | None = None,
    past: Past | None = None,
    force: bool = False,
    executor: str = "auto",
    workers: int | None = None,
    address: str = "",
) -> Plan:
    """Compare a grid with the rows that exist.

    Args:
        grid: what to run.
        rows: of this grid's results folder.
        history: rows of other folders, for the estimate only.
        facts: about methods and workloads.
        past: what the stage cache holds and what that took.
        force: run everything again.
        executor: ``local``, ``ray``, or ``auto`` to decide by the number of missing cells.
        workers: of Ray; the number of cores unless given.
        address: of a cluster, if cells run on one.
    """
    facts, past, rows = facts or Facts(), past or Past(), tuple(rows)
    by_key = {row.key: row for row in rows}
    cells = grid.cells()
    finished = {c.key for c in cells if (row := by_key.get(c.key)) and row.status in DONE}
    stale = {key for key in finished if _is_stale(by_key[key], facts)}
    done = frozenset() if force else frozenset(finished - stale)
    missing = tuple(c for c in cells if c.key not in done)
    todo = Todo(
        shared=tuple({c.shared_key: c for c in missing}.values()),
        cells=missing,
        untimed=tuple(c for c in cells if c.key not in done or needs_timing(by_key[c.key])),
        prepared=frozenset(c.shared_key for c in cells if c.key in done and c.key not in stale),
    )
    fan = choose_fan(executor, workers, len(missing), grid.target, address)
    rates = Rates.of((*rows, *history), machine.fingerprint(), facts.size, past.made_here)
    untimed = {cell.key for cell in todo.untimed}
    known = Known(
        rates=rates,
        done=done,
        timed=frozenset(cell.key for cell in cells if cell.key not in untimed),
        prepared=todo.prepared,
        shared=past.shared,
        models=past.models,
        sizes=facts.size,
        resolution=facts.resolution,
        model_bytes=lambda workload: int(facts.megabytes(workload) * 1e6),
    )
    dag = stage_dag(cells, known)
    schedule = simulate(
        dag, fan.workers, Costs(start=START_SECONDS[fan.executor], end=PAGE_SECONDS)
    )
    return Plan(
        grid=grid,
        cells=cells,
        done=done,
        stale=frozenset(stale),
        todo=todo,
        fan=fan,
        seconds=schedule.seconds,
        measured=bool(rates),
        disk=sum(stage.disk for stage in dag.stages.values() if not stage.cached),
        stamp=facts.stamp,
        memory=memory_bytes(missing, (*rows, *history), facts.megabytes),
        dag=dag,
        schedule=schedule,
        sizes=facts.size,
    )


def needs_timing(row: Row) -> bool:
    """True for an ok row without latency: the run was stopped before that, or timing failed."""
    return row.status is Status.OK and row.latency is None


def choose_fan(
    executor: str, workers: int | None, missing: int, target: Target, address: str = ""
) -> Fan:
    """Pick the executor: Ray's start has to be worth it. One process has the whole GPU."""
    if address:  # how many workers it really has room for is known when the run has joined it
        return Fan("cluster", max(1, min(workers or machine.cores(), max(1, missing))), address)
    if target.kind != "cpu":
        executor = "local"
    if executor == "auto":
        spread = (workers or machine.cores()) > 1 and missing >= RAY_FROM_CELLS
        executor = "ray" if spread else "local"
    if executor == "local":
        return Fan("local", 1)
    return Fan("ray", max(1, min(workers or machine.cores(), max(1, missing))))


def plan_lines(plan: Plan, folder: Path) -> list[str]:
    """The plan for a reader, before anything runs, in a few lines."""
    grid = plan.grid
    own: dict[tuple[str, ...], int] = {}
    for name in dict.fromkeys(name for name, _ in grid.also):
        widths = tuple(bits for other, bits in grid.also if other == name)
        own[widths] = own.get(widths, 0) + 1
    shares = {grid.bits: len(grid.methods)} | own
    shape = "; ".join(f"{count} methods x {', '.join(bits)}" for bits, count in shares.items())
    if len(grid.workloads) > 1 or len(grid.seeds) > 1:
        shape += f"; on {len(grid.workloads)} workloads x {len(grid.seeds)} seeds"
    chosen = {name for name, _, _ in grid.left_out} & set(grid.workloads)
    if chosen:
        shape += f"; fewer widths on {', '.join(sorted(chosen))}"
    state = f"{len(plan.cells)} cells ({shape})"
    if plan.done:
        state += f": {len(plan.done)} done, {len(plan.todo.cells)} to run"
    if plan.stale:
        state += f", {len(plan.stale)} of them again because code or model changed"
    lines = [f"plan {grid.name}: {state}"]
    if plan.todo:
        basis = "measured here" if plan.measured else "defaults, refined while running"
        lines.append(
            f"  about {minutes(plan.seconds)} ({basis}), about {plan.disk / 1e6:.0f} MB of disk, "
            f"{_fan_text(plan.fan)}"
        )
    else:
        lines.append("  nothing to run")
    lines.append(f"  results in {folder}")
    return lines


def next_line(plan: Plan) -> str:
    """What the next larger preset would take, in one line."""
    grid, budget = plan.grid, plan.grid.budget
    return (
        f"  next is {grid.name}: {len(plan.cells)} cells, {budget.images} images, "
        f"{budget.calibration_samples} points, {budget.iterations} iterations, "
        f"{len(grid.seeds)} seeds, about {minutes(plan.seconds)}"
    )


def minutes(seconds: float) -> str:
    """A duration in words: ``40 s``, ``3 min``, ``2 h 10 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    whole = round(seconds / 60)
    return f"{whole} min" if whole < 120 else f"{whole // 60} h {whole % 60} min"


def _fan_text(fan: Fan) -> str:
    if fan.executor == "cluster":
        return f"on the cluster at {fan.address}, if it has {fan.workers} workers"
    return "in this process" if fan.executor == "local" else f"{fan.workers} workers"


def _is_stale(row: Row, facts: Facts) -> bool:
    current, measured = facts.stamp(row.cell), row.stage_keys.get(STAMP, "")
    return bool(current and measured and current != measured)
