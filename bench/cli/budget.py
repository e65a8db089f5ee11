"""The verb ``budget``: the same cells at several budgets, and the curves that come of them."""

import dataclasses
import json
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from quantarena.bench import files
from quantarena.bench.budget.curves import Curves, Level, LevelRun, Panel, Stop
from quantarena.bench.budget.factors import DEFAULT, budgets, parse_factors, run_name, spent
from quantarena.bench.budget.measure import curves_of
from quantarena.bench.cli.common import JsonOption, Verb, emit, listed, table, takes
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
from quantarena.bench.documents import finite
from quantarena.bench.plan import presets
from quantarena.bench.plan.plan import Plan, minutes, plan_lines
from quantarena.bench.report import publish
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.store import Store

PAGE, DOCUMENT = "budget.html", "budget.json"
FactorsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--factors",
        help="Times the preset's own budget; repeatable, commas allowed. "
        f"[default: {','.join(DEFAULT)}]",
    ),
]
DryOption = Annotated[
    bool, typer.Option("--plan", help="Show what each budget spends and takes; run nothing.")
]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One budget of the curves and the run that measures it."""

    level: Level
    request: Request
    plan: Plan


@takes(RequestOptions)
def budget(
    given: RequestOptions,
    factors: FactorsOption = None,
    only_plan: DryOption = False,
    timeout: TimeoutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> int:
    """Run a choice of cells at several budgets, then draw error against core-seconds."""
    check_timeout(timeout)
    chosen = parse_factors(listed("--factors", factors) or DEFAULT)
    reporter = Reporter(quiet=quiet)
    name = given.name or f"{presets.choose(_grid(given), given.choice).name}-budget"
    base = made_request(replace(given, name=name))
    command = _command(base.command, given.preset, chosen)
    asked = _asked(base, chosen, command, reporter)
    lines = _plan_lines(asked)
    if only_plan:
        emit(_plan_document(asked), lines, as_json=as_json)
        return 0
    for line in lines:
        reporter.say(line)
    folder, code = given.results / name, 0
    title = f"Budget curves: {base.grid.title}"
    for each in asked:
        code = max(code, run_request(each.request, timeout, reporter).code)
        # After each budget: an interrupted run leaves the curves that there are.
        curves = curves_of(title, command, [_level_run(other) for other in asked])
        page = _write(folder, curves)
    emit(dataclasses.asdict(curves), [*_tables(curves), str(page)], as_json=as_json)
    return code


VERBS: dict[str, Verb] = {"budget": budget}


def _grid(given: RequestOptions) -> Any:
    return presets.preset(given.preset).grid


def _command(command: str, preset: str, factors: tuple[Fraction, ...]) -> str:
    """The command line that measures the same curves again."""
    rest = command.removeprefix(f"quantarena run {preset}")
    return f"quantarena budget {preset} --factors {','.join(map(str, factors))}{rest}"


def _asked(
    base: Request, factors: tuple[Fraction, ...], command: str, reporter: Reporter
) -> tuple[_Asked, ...]:
    """The runs of all budgets, each refused now and not after hours if it cannot be.

    Raises:
        UserError: budgets coincide, or a folder holds rows of another budget.
    """
    asked = []
    for factor, spends in budgets(base.grid.budget, factors).items():
        grid = replace(
            base.grid,
            name=run_name(base.grid.name, factor),
            title=f"{base.grid.title} (x{factor} of its budget)",
            budget=spends,
        )
        request = replace(base, grid=grid, command=command)
        rows = Store(request.folder, reporter.warn).rows()
        require_budget(request, rows)
        level = Level(str(factor), grid.name, spent(spends))
        known = history(request, reporter.warn)
        asked.append(_Asked(level, request, planned_work(request, rows, known)))
    return tuple(asked)


def _plan_lines(asked: tuple[_Asked, ...]) -> list[str]:
    """What each budget spends and takes, before anything runs."""
    whole = sum(each.plan.seconds for each in asked)
    lines = [f"budget curves: {len(asked)} budgets, about {minutes(whole)} in all"]
    for each in asked:
        lines.append(f"x{each.level.factor}: {each.level.spent}")
        lines += [f"  {line.strip()}" for line in plan_lines(each.plan, each.request.folder)]
    return lines


def _plan_document(asked: tuple[_Asked, ...]) -> list[dict[str, Any]]:
    return [
        {
            **dataclasses.asdict(each.level),
            "budget": dataclasses.asdict(each.request.grid.budget),
            "cells": len(each.plan.cells),
            "to_run": len(each.plan.todo.cells),
            "seconds": round(each.plan.seconds, 1),
        }
        for each in asked
    ]


def _level_run(each: _Asked) -> LevelRun:
    rows = Store(each.request.folder).rows()
    return LevelRun(each.level, each.request.folder, each.request.grid.cells(), rows)


def _write(folder: Path, curves: Curves) -> Path:
    """Write the page and the document of the curves."""
    files.ensure_folder(folder)
    document = json.dumps(finite(dataclasses.asdict(curves)), indent=1, allow_nan=False)
    files.write_atomic(folder / DOCUMENT, document + "\n")
    page = folder / PAGE
    files.write_atomic(page, publish.leaderboard("page.budget").budget_html(curves))
    return page


def _tables(curves: Curves) -> list[Table | str]:
    """For each workload and width: error and cost by budget, knees, and who wins."""
    parts: list[Table | str] = []
    for panel in curves.panels:
        for number, measure in enumerate(panel.measures):
            unit = f" ({measure.unit})" if measure.unit else ""
            heading = f"{panel.workload} {panel.setting}: {measure.title}{unit}"
            columns = ("method", *(f"x{level.factor}" for level in curves.levels), "knee")
            parts.append(table(heading, columns, _table_rows(panel, number)))
            parts += [
                f"  x{v.factor}: {v.text}" for v in panel.verdicts if v.measure == measure.name
            ]
    return parts


def _table_rows(panel: Panel, number: int) -> list[list[str]]:
    name = panel.measures[number].name
    rows = []
    for curve in panel.curves:
        knee = curve.knees.get(name)
        end = "-" if knee is None else f"x{knee.factor}{'' if knee.reached else ' or more'}"
        rows.append([curve.title, *(_shown(stop, name) for stop in curve.stops), end])
    return rows


def _shown(stop: Stop, name: str) -> str:
    found = stop.readings.get(name)
    if found is None:
        return stop.state if stop.state != "ok" else "-"
    seconds = "" if stop.core_seconds is None else f", {stop.core_seconds:.1f} core-s"
    return f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}]{seconds}"
