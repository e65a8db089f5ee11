"""How long a large grid takes with 1 to 1,000 workers, and what limits it: a simulation by events.

    python docs/experiments/scale/simulate.py measure RESULTS/RUN --json timings.json
    python docs/experiments/scale/simulate.py table docs/experiments/scale/timings.json

``measure`` takes the seconds of stages from a finished run of ``cpu_run.py`` (rows and notes of
shared stages), and times what a driver does for each task on the disk of this machine: taking and
giving back a lease, writing a row, its outline, an estimate of the time left with 10,000 cells.
``table`` plans the grid ``quick`` for so many seeds that it has 10,000 cells, and lets the
planner's own simulation (``bench/plan/schedule.py``) run it.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from quantarena.bench import machine
from quantarena.bench.documents import read
from quantarena.bench.plan import lookup, presets
from quantarena.bench.plan.dag import Known, stage_dag
from quantarena.bench.plan.estimate import Rates, Todo, remaining_seconds
from quantarena.bench.plan.past import past
from quantarena.bench.plan.schedule import Costs, simulate
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Budget, Cell, Grid
from quantarena.bench.storage.leases import Leases
from quantarena.bench.storage.outlines import outline
from quantarena.bench.storage.shelves import FolderShelf
from quantarena.bench.store import Store

SEEDS = 68
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
CORES = 16
"""Workers on one machine of the table: latencies are timed one at a time on each."""
TRIPS = 4
"""Calls of a store that the driver makes for each task, and about as many by the worker: a lease
taken and given back, a row looked for and put."""
FAR = 0.1
"""Seconds of one call of a far object store: an assumption, not a measurement."""
REPEATS = 200


def measure(folder: Path, file: Path) -> None:
    """Seconds of stages and of the driver, as JSON."""
    rows = [row for row in Store(folder, foreign=True).rows() if row.status is Status.OK]
    cells = [row.cell for row in rows]
    here = machine.fingerprint()
    seen = past(folder.parent / ".cache", cells, rows, lambda cell: "", here)
    document = {
        "machine": {name: here[name] for name in machine.COMPARED},
        "clock": "processor seconds of one thread",
        "run": folder.name,
        "budget": rows[0].to_dict()["cell"]["budget"],
        "cells": [
            {"workload": r.cell.workload, "method": r.cell.method, "bits": r.cell.bits,
             "seconds": r.seconds} for r in rows
        ],
        "shared": [[name, seconds] for _, name, seconds in seen.made_here],
        "driver": driver_seconds(rows[-1]),
    }  # fmt: skip
    file.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["driver"], indent=1))


def driver_seconds(row: Row) -> dict[str, dict[str, float]]:
    """Processor and wall seconds of what a driver does for one task: medians of many."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        store, leases = Store(Path(place)), Leases(FolderShelf(Path(place) / ".leases"))

        def lease(number: int) -> None:
            if (taken := leases.take(f"cell-{number}")) is not None:
                leases.release(taken)

        def put(number: int) -> None:
            store.put(replace(row, cell=replace(row.cell, seed=number)))

        for name, call in {"lease": lease, "row": put, "outline": lambda n: outline(row)}.items():
            found[name] = timed(call, REPEATS)
    grid = wide_grid()
    todo, rates = Todo(cells=grid.cells(), untimed=grid.cells()), Rates({})
    found["estimate of 10,000 cells"] = timed(lambda n: remaining_seconds(todo, rates, 16), 5)
    return found


def timed(call: Callable[[int], object], repeats: int) -> dict[str, float]:
    """Median processor and wall seconds of a call."""
    cpu, wall = [], []
    for number in range(repeats):
        one, two = time.process_time(), time.perf_counter()
        call(number)
        cpu.append(time.process_time() - one)
        wall.append(time.perf_counter() - two)
    return {"cpu_s": statistics.median(cpu), "wall_s": statistics.median(wall)}


def wide_grid() -> Grid:
    """The grid of 10,000 cells."""
    chosen = presets.Choice(seeds=tuple(range(SEEDS)))
    return presets.choose(presets.preset("quick").grid, chosen)


def table(file: Path) -> None:
    """Print the table as markdown."""
    said = json.loads(file.read_text())
    budget = read(Budget, said["budget"])
    grid = wide_grid()
    sizes = lookup.facts(grid).size
    rows = [
        Row(Cell(c["workload"], c["method"], c["bits"], budget=budget), Status.OK,
            machine=said["machine"], seconds=c["seconds"])
        for c in said["cells"]
    ]  # fmt: skip
    shared = [(rows[0].cell, name, seconds) for name, seconds in said["shared"]]
    rates = Rates.of(rows, said["machine"], sizes, shared)
    dag = stage_dag(grid.cells(), Known(rates, sizes=sizes))
    tasks = dag.tasks()
    parts = {kind: [s for t, s in tasks.items() if t.startswith(kind)]
             for kind in ("prepare", "cell", "time")}  # fmt: skip
    for kind, seconds in parts.items():
        print(f"{len(seconds)} tasks {kind}: {sum(seconds) / 3600:.1f} h, mean "
              f"{statistics.mean(seconds):.1f} s, longest {max(seconds):.0f} s")  # fmt: skip
    critical = dag.critical()[0]
    print(f"critical path {critical:.0f} s")
    driver = sum(said["driver"][name]["cpu_s"] for name in ("lease", "row", "outline"))
    driver *= 21 / 20  # estimates take at most a twentieth
    print(f"driver {1000 * driver:.2f} ms a task")
    print("| workers | machines | hours | speed-up | busy | cells | latencies | driver busy "
          "| 100 ms a store call |")  # fmt: skip
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    one = None
    for workers in WORKERS:
        machines = max(1, workers // CORES)
        found = simulate(dag, workers, Costs(task=driver), machines)
        far = simulate(dag, workers, Costs(task=driver + FAR * TRIPS, trip=FAR * TRIPS), machines)
        one = one or found.seconds
        print(f"| {workers} | {machines} | {found.seconds / 3600:.2f} | {one / found.seconds:.0f} "
              f"| {100 * found.busy:.0f} % | {found.cells / 3600:.2f} h "
              f"| {found.timing / 3600:.2f} h | {100 * found.driver:.1f} % "
              f"| {far.seconds / 3600:.2f} h |")  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("folder", type=Path)
    measuring.add_argument("--json", type=Path, required=True)
    verbs.add_parser("table").add_argument("timings", type=Path)
    args = parser.parse_args()
    if args.verb == "measure":
        measure(args.folder, args.json)
    else:
        table(args.timings)


if __name__ == "__main__":
    main()
