"""The verbs ``plan`` and ``run``."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from quantarena.bench.cli.common import (
    RESULTS,
    JsonOption,
    ResultsOption,
    Verb,
    emit,
    opened_run,
    takes,
)
from quantarena.bench.cli.execution import (
    QuietOption,
    TimeoutOption,
    check_timeout,
    history,
    planned_work,
    require_budget,
    run_request,
)
from quantarena.bench.cli.options import Request, RequestOptions, made_request
from quantarena.bench.plan import presets
from quantarena.bench.plan.outlook import outlook_document, outlook_lines
from quantarena.bench.plan.plan import Plan, make_plan, minutes, next_line, plan_lines
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.run.rows import counts_line
from quantarena.bench.schema import Row
from quantarena.bench.share.place import require_unjoined
from quantarena.bench.storage.outlines import outlines
from quantarena.bench.storage.remote import is_url, shown
from quantarena.bench.storage.status import RunStatus, run_status
from quantarena.bench.storage.sync import pull
from quantarena.bench.store import Store


@takes(RequestOptions)
def plan(given: RequestOptions, as_json: JsonOption = False) -> None:
    """Show the cells, the estimated time and the disk space of a run, without running anything."""
    request = made_request(given)
    require_unjoined(request.folder)
    warn = Reporter().warn
    pull(request.folder, warn, pictures=False)
    rows = outlines(Store(request.folder, warn))
    require_budget(request, rows)
    known = history(request, warn)
    made = planned_work(request, rows, known)
    cells = [
        f"  {'done' if cell.key in made.done else 'to run':7} {cell.key}  {cell.label}"
        + (f"/seed{cell.seed}" if cell.seed else "")
        for cell in made.cells
    ]
    beyond = presets.larger(given.preset) if given.choice == presets.Choice() else None
    lines = [*plan_lines(made, request.folder), *outlook_lines(made)]
    if beyond:
        lines.append(next_line(_sized(request, beyond, (*rows, *known))))
    document = _as_json(made, request) if as_json else None
    emit(document, [*lines, *cells], as_json=as_json)


@takes(RequestOptions)
def run(
    given: RequestOptions,
    timeout: TimeoutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> int:
    """Run what is missing of a preset, or of your own choice of cells, then write the page."""
    check_timeout(timeout)
    reporter = Reporter(quiet=quiet)
    request = made_request(given)
    done = run_request(request, timeout, reporter)
    place, line = shown(request.folder), f"{counts_line(done.counts)} -> {done.page}"
    if is_url(place):
        line = f"{counts_line(done.counts)} -> {place} (to open the page here: {done.page})"
    store = Store(request.folder, reporter.warn)
    whole = (store.get(cell.key) for cell in done.plan.cells) if as_json else ()
    summary = {
        "run": request.grid.name,
        "counts": done.counts,
        "page": str(done.page),
        "seconds": round(done.seconds, 1),
        "rows": [row.to_dict() for row in whole if row is not None],
    }
    emit(summary, line, as_json=as_json)
    return done.code


def status(
    run: Annotated[
        str, typer.Argument(help="Name of a run, or its folder.", metavar="RUN")
    ] = presets.DEFAULT,
    results: ResultsOption = RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Show how far a run is, who drives it, and since when a dead one is dead.

    Any machine that sees the results can ask. The exit code is 1 for a run that is dead.
    """
    store, now = opened_run(results, run), datetime.now(UTC)
    found = run_status(store, now)
    emit(found.to_dict(now), _status_lines(found, store, now), as_json=as_json)
    return 1 if found.state == "dead" else 0


VERBS: dict[str, Verb] = {"plan": plan, "run": run, "status": status}


def _status_lines(found: RunStatus, store: Store, now: datetime) -> list[str]:
    done = found.cells - found.counts["missing"]
    line = f"{shown(store.folder)}: {found.state}, {done} of {found.cells} cells "
    line += f"({counts_line(found.counts)}"
    line += f", {found.counts['untimed']} without latency)" if found.counts["untimed"] else ")"
    if found.seconds_left:
        line += f", about {minutes(found.seconds_left)} left"
    lines = [line]
    for driver in (*found.live, *found.dead):
        silent = minutes(driver.silent(now))
        heard = f"heard of {silent} ago" if driver in found.live else f"dead since {driver.beat}"
        tasks = f"{driver.ended} of {driver.total} tasks, {driver.workers} workers"
        lines.append(f"  {driver.owner.label}: {heard}, began {driver.started}, {tasks}")
        for label, stage, count, total in driver.running:
            lines.append(f"    {label}: {stage}" + (f" {count}/{total}" if total > 1 else ""))
    for driver in found.over[-3:]:
        lines.append(f"  {driver.owner.label}: {driver.state} {driver.beat}")
    if found.state in ("dead", "stopped"):
        lines.append("  the same command goes on with it")
    return lines


def _sized(request: Request, preset: str, known: tuple[Row, ...]) -> Plan:
    """Another preset as it would run here, whatever is done of it."""
    grid = presets.preset(preset).grid
    return make_plan(grid, (), history=known, executor=request.executor, workers=request.workers)


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
        "memory_bytes": made.memory,
        **outlook_document(made),
    }
