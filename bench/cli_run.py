"""The verbs ``plan`` and ``run``."""

import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from quantarena.bench import catalog, files, pages, presets
from quantarena.bench.cli_common import (
    RESULTS,
    JsonOption,
    PluginOption,
    ResultsOption,
    Verb,
    emit,
    listed,
)
from quantarena.bench.console import Reporter
from quantarena.bench.errors import UserError, did_you_mean
from quantarena.bench.plan import Plan, make_plan, minutes, plan_lines
from quantarena.bench.runner import Options, Run, counts, counts_line
from quantarena.bench.schema import Row
from quantarena.bench.spec import Cell, Grid
from quantarena.bench.store import Planned, Store

EXECUTORS = ("auto", "local", "ray")
CACHE = ".cache"

PresetArgument = Annotated[str, typer.Argument(help=f"One of {', '.join(presets.PRESETS)}.")]
WorkloadOption = Annotated[
    list[str] | None,
    typer.Option("--workload", help="Workload, or a diffusers pipeline folder; repeatable."),
]
MethodOption = Annotated[
    list[str] | None, typer.Option("--method", help="Method; repeatable, commas allowed.")
]
BitsOption = Annotated[
    list[str] | None, typer.Option("--bits", help="Such as w4a8; repeatable, commas allowed.")
]
SeedOption = Annotated[list[int] | None, typer.Option("--seed", help="Seed; repeatable.")]
ImagesOption = Annotated[int | None, typer.Option("--images", help="Images a cell.")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Sampler steps.")]
IterationsOption = Annotated[
    int | None, typer.Option("--iterations", help="Reconstruction iterations a block.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Folder under --results; the preset's name if absent.")
]
ForceOption = Annotated[bool, typer.Option("--force/--only-missing", help="Run done cells again.")]
ExecutorOption = Annotated[str, typer.Option("--executor", help=f"{', '.join(EXECUTORS)}.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Workers of Ray.")]


@dataclass(frozen=True, slots=True)
class Request:
    """What the options of ``plan`` and ``run`` come to.

    Attributes:
        grid: the cells asked for.
        executor: ``auto``, ``local`` or ``ray``.
        workers: of Ray, or None.
        plugins: absolute paths.
        results: root of the results folders.
        force: whether done cells run again.
        warning: of the preset, or empty.
    """

    grid: Grid
    executor: str
    workers: int | None
    plugins: tuple[str, ...]
    results: Path
    force: bool
    warning: str

    @property
    def folder(self) -> Path:
        """Where rows and page go."""
        return self.results / self.grid.name


def plan(
    preset: PresetArgument = presets.DEFAULT,
    workload: WorkloadOption = None,
    method: MethodOption = None,
    bits: BitsOption = None,
    seed: SeedOption = None,
    images: ImagesOption = None,
    steps: StepsOption = None,
    iterations: IterationsOption = None,
    name: NameOption = None,
    plugin: PluginOption = None,
    results: ResultsOption = RESULTS,
    force: ForceOption = False,
    executor: ExecutorOption = "auto",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the cells, the estimated time and the disk of a run, without running anything."""
    choice = _choice(workload, method, bits, seed, images, steps, iterations, name)
    request = _request(preset, choice, plugin, results, force, executor, workers)
    store = Store(request.folder, Reporter().warn)
    made = _plan(request, store.rows())
    cells = [
        f"  {'done' if cell.key in made.done else 'to run':7} {cell.key}  {cell.label}"
        + (f"/seed{cell.seed}" if cell.seed else "")
        for cell in made.cells
    ]
    emit(_as_json(made, request), [*plan_lines(made, request.folder), *cells], as_json=as_json)


def run(
    preset: PresetArgument = presets.DEFAULT,
    workload: WorkloadOption = None,
    method: MethodOption = None,
    bits: BitsOption = None,
    seed: SeedOption = None,
    images: ImagesOption = None,
    steps: StepsOption = None,
    iterations: IterationsOption = None,
    name: NameOption = None,
    plugin: PluginOption = None,
    prefer_plugin: Annotated[
        bool, typer.Option(help="A plug-in wins over a built-in of the same name.")
    ] = False,
    results: ResultsOption = RESULTS,
    force: ForceOption = False,
    executor: ExecutorOption = "auto",
    workers: WorkersOption = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Minutes a cell may take; 0 is no limit. [8 x its estimate]"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Run what is missing of a preset or of your own choice of cells, then write the page."""
    reporter = Reporter(quiet=quiet)
    choice = _choice(workload, method, bits, seed, images, steps, iterations, name)
    request = _request(preset, choice, plugin, results, force, executor, workers)
    options = Options(
        cache=results / CACHE,
        plugins=request.plugins,
        prefer_plugin=prefer_plugin,
        timeout=None if timeout is None else timeout * 60,
        force=force,
    )
    began = time.monotonic()
    store = Store(request.folder, reporter.warn)
    with store.lock():
        made, rows, page = _execute(request, options, store, reporter)
    found = counts(made.cells, rows)
    line = f"{counts_line(found)} -> {page}"
    summary = {
        "run": request.grid.name,
        "counts": found,
        "page": str(page),
        "seconds": round(time.monotonic() - began, 1),
        "rows": [rows[cell.key].to_dict() for cell in made.cells if cell.key in rows],
    }
    for cell in made.cells:
        row = rows.get(cell.key)
        if row is not None and row.reason:
            reporter.say(f"  {cell.label} {row.status}: {row.reason}")
    emit(summary, line, as_json=as_json)
    bad = sum(found[status] for status in ("failed", "timeout", "oom", "missing"))
    return 1 if bad else 0


VERBS: dict[str, Verb] = {"plan": plan, "run": run}


def _execute(
    request: Request, options: Options, store: Store, reporter: Reporter
) -> tuple[Plan, dict[str, Row], Path]:
    files.ensure_folder(options.cache)
    rows = store.rows()
    made = _plan(request, rows)
    for line in plan_lines(made, request.folder):
        reporter.say(line)
    if request.warning and made.todo:
        reporter.say(f"  note: {request.warning}")
    _check_disk(made, request.folder)
    budget = request.grid.budget
    store.retire(row for row in rows if row.cell.budget != budget)
    planned = _planned(request, store, made.cells)
    store.write_planned(planned)
    work = Run(made, store, options, reporter, _history(request))
    try:
        work.execute()
    except KeyboardInterrupt:
        kept = len(made.cells) - counts(made.cells, _by_key(store))["missing"]
        reporter.warn(
            f"interrupted: {kept} of {len(made.cells)} cells are kept in {request.folder}; "
            "run the same command again to continue"
        )
        raise
    page = pages.refresh(store, planned, force=request.force)
    return made, _by_key(store), page


def _choice(
    workload: list[str] | None,
    method: list[str] | None,
    bits: list[str] | None,
    seed: list[int] | None,
    images: int | None,
    steps: int | None,
    iterations: int | None,
    name: str | None,
) -> presets.Choice:
    return presets.Choice(
        workloads=listed(workload),
        methods=listed(method),
        bits=listed(bits),
        seeds=tuple(seed or ()),
        images=images,
        steps=steps,
        iterations=iterations,
        name=name,
    )


def _request(
    preset: str,
    choice: presets.Choice,
    plugin: list[str] | None,
    results: Path,
    force: bool,
    executor: str,
    workers: int | None,
) -> Request:
    """Check every name before anything is written or started."""
    base = presets.preset(preset)
    if executor not in EXECUTORS:
        raise UserError(f"unknown executor {executor!r}: {did_you_mean(executor, EXECUTORS)}")
    plugins = catalog.plugin_paths(plugin or ())
    grid = presets.choose(base.grid, choice)
    catalog.check_methods(grid.methods, plugins)
    workloads = tuple(catalog.canonical_workload(name) for name in grid.workloads)
    own = base.executor if executor == "auto" else executor
    return Request(
        grid=presets.with_workloads(grid, workloads),
        executor=own,
        workers=workers,
        plugins=plugins,
        results=results,
        force=force,
        warning=base.warning,
    )


def _plan(request: Request, rows: tuple[Row, ...]) -> Plan:
    facts = catalog.facts(request.grid, request.plugins, versions=bool(request.plugins))
    return make_plan(
        request.grid,
        rows,
        history=_history(request),
        facts=facts,
        force=request.force,
        executor=request.executor,
        workers=request.workers,
    )


def _history(request: Request) -> tuple[Row, ...]:
    """Rows of other runs beside this one; what they took helps to estimate."""
    others = request.results.glob("*/rows") if request.results.is_dir() else ()
    folders = (path.parent for path in others if path.parent != request.folder)
    return tuple(row for folder in folders for row in Store(folder).rows())


def _planned(request: Request, store: Store, cells: tuple[Cell, ...]) -> Planned:
    """What was planned here before at this budget stays on the page."""
    before = store.read_planned()
    earlier = before.cells if before else ()
    kept = tuple(cell for cell in earlier if cell.budget == request.grid.budget)
    command = shlex.join(["quantarena", *sys.argv[1:]])
    return Planned(request.grid.title, command, tuple(dict.fromkeys((*kept, *cells))))


def _check_disk(made: Plan, folder: Path) -> None:
    import shutil

    free = shutil.disk_usage(folder).free
    if made.todo and made.disk > free:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free and the run needs about "
            f"{made.disk / 1e6:.0f} MB: free some space, or choose another place with --results"
        )


def _by_key(store: Store) -> dict[str, Row]:
    return {row.key: row for row in store.rows()}


def _as_json(made: Plan, request: Request) -> dict[str, Any]:
    return {
        "run": made.grid.name,
        "folder": str(request.folder),
        "cells": [
            {"key": cell.key, "done": cell.key in made.done, **asdict(cell)} for cell in made.cells
        ],
        "to_run": len(made.todo.cells),
        "done": len(made.done),
        "stale": sorted(made.stale),
        "seconds": round(made.seconds, 1),
        "estimate": minutes(made.seconds) if made.todo else "nothing to run",
        "measured": made.measured,
        "disk_bytes": made.disk,
        "executor": made.fan.executor,
        "workers": made.fan.workers,
    }
