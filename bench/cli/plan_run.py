"""The verbs ``plan`` and ``run``."""

from dataclasses import asdict
from typing import Any

from quantarena.bench.cli.common import JsonOption, Verb, emit, takes
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
from quantarena.bench.plan.plan import Plan, make_plan, minutes, next_line, plan_lines
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.run.rows import counts_line
from quantarena.bench.schema import Row
from quantarena.bench.store import Store


@takes(RequestOptions)
def plan(given: RequestOptions, as_json: JsonOption = False) -> None:
    """Show the cells, the estimated time and the disk space of a run, without running anything."""
    request = made_request(given)
    warn = Reporter().warn
    rows = Store(request.folder, warn).rows()
    require_budget(request, rows)
    known = history(request, warn)
    made = planned_work(request, rows, known)
    cells = [
        f"  {'done' if cell.key in made.done else 'to run':7} {cell.key}  {cell.label}"
        + (f"/seed{cell.seed}" if cell.seed else "")
        for cell in made.cells
    ]
    beyond = presets.larger(given.preset) if given.choice == presets.Choice() else None
    lines = plan_lines(made, request.folder)
    if beyond:
        lines.append(next_line(_sized(request, beyond, (*rows, *known))))
    emit(_as_json(made, request), [*lines, *cells], as_json=as_json)


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
    line = f"{counts_line(done.counts)} -> {done.page}"
    summary = {
        "run": request.grid.name,
        "counts": done.counts,
        "page": str(done.page),
        "seconds": round(done.seconds, 1),
        "rows": [
            done.rows[cell.key].to_dict() for cell in done.plan.cells if cell.key in done.rows
        ],
    }
    emit(summary, line, as_json=as_json)
    return done.code


VERBS: dict[str, Verb] = {"plan": plan, "run": run}


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
    }
