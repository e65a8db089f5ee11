"""The verbs ``plan`` and ``run``."""

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from quantarena.bench import files
from quantarena.bench.cli.common import JsonOption, Verb, emit
from quantarena.bench.cli.options import Request, RequestOptions, made_request
from quantarena.bench.cli.signature import takes
from quantarena.bench.errors import UserError
from quantarena.bench.files import TEMPORARY, sweep, sweep_drafts
from quantarena.bench.plan import lookup, presets
from quantarena.bench.plan.plan import Plan, make_plan, minutes, next_line, plan_lines
from quantarena.bench.report import publish
from quantarena.bench.report.worse import warn_of_worse
from quantarena.bench.run import executors
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.run.rows import counts, counts_line
from quantarena.bench.run.runner import Options, Run
from quantarena.bench.schema import Row
from quantarena.bench.spec import Cell
from quantarena.bench.store import Planned, Store, Warn

CACHE = ".cache"
MOST_MINUTES = 366 * 24 * 60


@takes(RequestOptions)
def plan(given: RequestOptions, as_json: JsonOption = False) -> None:
    """Show the cells, the estimated time and the disk space of a run, without running anything."""
    request = made_request(given)
    warn = Reporter().warn
    rows = Store(request.folder, warn).rows()
    _require_budget(request, rows)
    history = _history(request, warn)
    made = _plan(request, rows, history)
    cells = [
        f"  {'done' if cell.key in made.done else 'to run':7} {cell.key}  {cell.label}"
        + (f"/seed{cell.seed}" if cell.seed else "")
        for cell in made.cells
    ]
    beyond = presets.larger(given.preset) if given.choice == presets.Choice() else None
    lines = plan_lines(made, request.folder)
    if beyond:
        lines.append(next_line(_sized(request, beyond, (*rows, *history))))
    emit(_as_json(made, request), [*lines, *cells], as_json=as_json)


@takes(RequestOptions)
def run(
    given: RequestOptions,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Minutes that a cell may take; 0 for no limit. [default: 8 x its estimate]",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Run what is missing of a preset, or of your own choice of cells, then write the page."""
    if timeout is not None and not 0 <= timeout <= MOST_MINUTES:
        raise UserError(
            f"--timeout {timeout}: give minutes, at most {MOST_MINUTES} (a year); 0 is no limit"
        )
    reporter = Reporter(quiet=quiet)
    request = made_request(given)
    options = Options(
        cache=given.results / CACHE,
        stages=executors.STAGES,
        plugins=request.plugins,
        prefer_plugin=given.prefer_plugin,
        timeout=None if timeout is None else timeout * 60,
        force=given.force,
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
    _sweep(options.cache, request.folder)
    rows = store.rows()
    _require_budget(request, rows)
    history = _history(request, reporter.warn)
    made = _plan(request, rows, history)
    for line in plan_lines(made, request.folder):
        reporter.say(line)
    if request.warning and made.todo:
        reporter.say(f"  note: {request.warning}")
    _check_disk(made, request.folder)
    store.retire(_of_other_budgets(request, rows))
    planned = _planned(request, store, made.cells)
    store.write_planned(planned)
    work = Run(made, store, options, reporter, history)
    try:
        work.execute()
    except KeyboardInterrupt:
        kept = len(made.cells) - counts(made.cells, _by_key(store))["missing"]
        reporter.warn(
            f"interrupted: {kept} of {len(made.cells)} cells are kept in {request.folder}; "
            "run the same command again to continue"
        )
        raise
    warn_of_worse(store)
    page = publish.refresh(store, planned, force=request.force)
    return made, _by_key(store), page


def _of_other_budgets(request: Request, rows: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(row for row in rows if row.cell.budget != request.grid.budget)


def _require_budget(request: Request, rows: Sequence[Row]) -> None:
    """Refuse a run that would take the rows of another budget off the page, unless forced.

    Raises:
        UserError: the folder holds such rows; the line says in what they differ.
    """
    others = _of_other_budgets(request, rows)
    if not others or request.force:
        return
    wanted, found = asdict(request.grid.budget), asdict(others[0].cell.budget)
    gaps = [f"{n} {found[n]} there, {wanted[n]} now" for n in wanted if found[n] != wanted[n]]
    raise UserError(
        f"{request.folder} holds {len(others)} rows of another budget ({'; '.join(gaps)}): choose "
        "another --name, or move them to rows/earlier with --force"
    )


def _plan(request: Request, rows: tuple[Row, ...], history: tuple[Row, ...]) -> Plan:
    facts = lookup.facts(request.grid, request.plugins, prefer_plugin=request.prefer_plugin)
    return make_plan(
        request.grid,
        rows,
        history=history,
        facts=facts,
        force=request.force,
        executor=request.executor,
        workers=request.workers,
    )


def _sized(request: Request, preset: str, known: tuple[Row, ...]) -> Plan:
    """Another preset as it would run here, whatever is done of it."""
    grid = presets.preset(preset).grid
    return make_plan(grid, (), history=known, executor=request.executor, workers=request.workers)


def _history(request: Request, warn: Warn) -> tuple[Row, ...]:
    """Rows of other runs beside this one; what they took helps to estimate."""
    others = sorted(request.results.glob("*/rows")) if request.results.is_dir() else ()
    folders = (path.parent for path in others if path.parent != request.folder)
    return tuple(row for folder in folders for row in Store(folder, warn, foreign=True).rows())


def _planned(request: Request, store: Store, cells: tuple[Cell, ...]) -> Planned:
    """What was planned here before at this budget stays on the page."""
    before = store.read_planned()
    earlier = before.cells if before else ()
    kept = tuple(cell for cell in earlier if cell.budget == request.grid.budget)
    return Planned(request.grid.title, request.command, tuple(dict.fromkeys((*kept, *cells))))


def _sweep(cache: Path, folder: Path) -> None:
    """Delete what killed runs left behind; this run holds the lock of ``folder``."""
    sweep(cache)
    sweep(Path(tempfile.gettempdir()), TEMPORARY)
    for name in ("rows", "rows/earlier", "scores"):
        sweep_drafts(folder / name, now=True)
    sweep_drafts(folder)


def _check_disk(made: Plan, folder: Path) -> None:
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
