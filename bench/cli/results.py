"""The verbs of results and rankings.

``rank``, ``render``, ``compare``, ``show`` and ``export`` read a run; ``simulate-ranking`` needs
none.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from quantarena.bench import files
from quantarena.bench.cli.common import (
    RESULTS,
    JsonOption,
    ResultsOption,
    RunArgument,
    StageLines,
    Verb,
    emit,
    listed,
    opened,
    require_store,
    run_names,
    table,
)
from quantarena.bench.errors import UserError, did_you_mean
from quantarena.bench.plan.presets import DEFAULT
from quantarena.bench.report import publish
from quantarena.bench.report.compare import Difference, compare_rows
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.schema import Row
from quantarena.bench.spec import MOST_SEED
from quantarena.bench.storage.remote import shown
from quantarena.bench.store import Planned, Store
from quantarena.methods.builtin import SETTING

InOption = Annotated[str | None, typer.Option("--in", help="Search this run only.", metavar="RUN")]


def rank(
    run: RunArgument = DEFAULT, results: ResultsOption = RESULTS, as_json: JsonOption = False
) -> None:
    """Rank the methods of a run, width by width, with the ranks that are possible."""
    store = opened(results, run)
    value = publish.leaderboard("ranking.ranking").write_ranking(store.folder).to_dict()
    emit(value, _ranking_tables(value), as_json=as_json)


def render(
    run: RunArgument = DEFAULT, results: ResultsOption = RESULTS, as_json: JsonOption = False
) -> None:
    """Write the leaderboard page and the tables of a run again."""
    store = opened(results, run)
    page = publish.refresh(store, _planned(store), force=True)
    emit({"page": str(page)}, str(page), as_json=as_json)


def compare(
    a: Annotated[
        str, typer.Argument(help="Key of a cell or its beginning, or [workload/]method@bits.")
    ],
    b: Annotated[str, typer.Argument(help="The cell to compare with, in the same form.")],
    in_run: InOption = None,
    results: ResultsOption = RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Show the paired differences of two cells' scores, with 95 % intervals."""
    stores = _stores(results, in_run)
    (store_a, row_a), (store_b, row_b) = find_row(stores, a), find_row(stores, b)
    differences = compare_rows(store_a.folder, row_a, store_b.folder, row_b)
    title = f"{_short(row_a)} ({row_a.key}) minus {_short(row_b)} ({row_b.key})"
    value = {
        "a": row_a.key,
        "b": row_b.key,
        "differences": [dataclasses.asdict(d) for d in differences],
    }
    cells = [
        (d.name, _pm(d), d.n, d.needed if d.needed is not None else "-", d.verdict)
        for d in differences
    ]
    columns = ("metric", "difference [95 % interval]", "images", "would separate", "verdict")
    shown = table(title, columns, cells)
    emit(value, shown, as_json=as_json)


def show(
    key: Annotated[
        str, typer.Argument(help="Key of a cell or its beginning, or [workload/]method@bits.")
    ],
    in_run: InOption = None,
    results: ResultsOption = RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Show everything that is stored of one cell."""
    store, row = find_row(_stores(results, in_run), key)
    document = {"file": str(store.path(row.key)), **row.to_dict()}
    emit(document, _describe(document), as_json=as_json)


def export(
    form: Annotated[str, typer.Argument(help=f"One of {', '.join(publish.FORMATS)}.")],
    run: RunArgument = DEFAULT,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write to. [that of the run]")
    ] = None,
    results: ResultsOption = RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Write the rows of a run as a table file."""
    if form not in publish.FORMATS:
        raise UserError(f"unknown format {form!r}: {did_you_mean(form, publish.FORMATS)}")
    store = opened(results, run)
    path = publish.export(store, form, output or store.folder)
    emit({"file": str(path)}, str(path), as_json=as_json)


def simulate_ranking(
    models: Annotated[int, typer.Option("--models", min=2, max=500, help="Contestants.")] = 50,
    k: Annotated[int, typer.Option("--k", min=2, max=8, help="Contestants of a vote.")] = 4,
    votes: Annotated[
        int, typer.Option("--votes", min=1, max=1_000_000, help="Votes of a run.")
    ] = 300,
    runs: Annotated[int, typer.Option("--runs", min=1, max=10_000, help="Runs of an engine.")] = 10,
    noise: Annotated[
        float,
        typer.Option(
            "--noise", min=0, max=1000, help="Noise of a look, in deviations of the skills."
        ),
    ] = 0.5,
    random: Annotated[
        float, typer.Option("--random", min=0, max=1, help="Share of votes cast at random.")
    ] = 0.0,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", help="Engine; repeatable, commas allowed. [default: joint]"),
    ] = None,
    matches: Annotated[
        str | None,
        typer.Option("--matches", help="How matches are chosen; by default the engine's way."),
    ] = None,
    truth: Annotated[
        str, typer.Option("--truth", help="Skills: even, or normal for draws from N(0, 1).")
    ] = "even",
    seed: Annotated[int, typer.Option("--seed", min=0, max=MOST_SEED, help="First seed.")] = 0,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="SVG file to draw the curves in.", metavar="FILE")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate voters, and count the votes and image views that ranking engines need."""
    registry = publish.leaderboard("ranking.engines.registry")
    names = listed("--engine", engine) or (registry.DEFAULT,)
    _known("engine", names, registry.ENGINES)
    _known("way to choose matches", [matches] if matches else [], registry.MATCHERS)
    voters = publish.leaderboard("ranking.simulation.voters")
    _known("truth", [truth], voters.TRUTHS)
    if plot and plot.suffix.lower() != ".svg":
        raise UserError(f"--plot {plot}: the plot is an SVG file, so name it *.svg")
    every = max(1, votes // 1000)
    setup = publish.leaderboard("ranking.simulation.runs").Setup(
        models, k, votes, voters.Regime(noise, random, truth), every, every * 25
    )
    simulation = publish.leaderboard("ranking.simulation.study")
    lines, seeds = StageLines(Reporter(quiet=quiet)), range(seed, seed + runs)
    outcomes = []
    for name in names:
        try:
            tell = functools.partial(lines, name)
            found = simulation.study(name, setup, seeds, matcher=matches, done=tell)
        except (ImportError, ValueError) as error:
            raise UserError(str(error)) from None
        outcomes.append(found)
    title = f"{models} models, noise {noise:g}, {100 * random:g} % random votes, {runs} runs"
    if plot:
        drawn = publish.leaderboard("page.convergence").convergence_svg(outcomes, title)
        files.write_atomic(plot, drawn)
    value = {
        "plot": str(plot) if plot else None,
        "outcomes": list(map(dataclasses.asdict, outcomes)),
    }
    emit(value, _simulation_table(title, outcomes, simulation.LEVELS), as_json=as_json)


VERBS: dict[str, Verb] = {
    "simulate-ranking": simulate_ranking,
    "rank": rank,
    "render": render,
    "compare": compare,
    "show": show,
    "export": export,
}


def find_row(stores: Iterable[Store], name: str) -> tuple[Store, Row]:
    """Find the row with a name: a key or its beginning, or ``[workload/]method@bits``.

    Raises:
        UserError: there is no such row, or there are several.
    """
    matches: list[tuple[Store, Row]] = []
    known: list[str] = []
    for store in stores:
        for row in store.rows():
            short = _short(row)
            known += [short, row.key]
            by_key = len(name) >= 4 and row.key.startswith(name.lower())
            if by_key or name in (short, f"{row.cell.workload}/{short}"):
                matches.append((store, row))
    if not matches:
        raise UserError(f"no row {name!r}: {did_you_mean(name, known)}")
    if len(matches) > 1:
        options = ", ".join(f"{row.key} in {store.folder.name}" for store, row in matches[:6])
        raise UserError(
            f"{name!r} means {len(matches)} rows ({options}): give a key, or one run with --in"
        )
    return matches[0]


def _stores(results: Path, in_run: str | None) -> tuple[Store, ...]:
    names = (in_run,) if in_run else run_names(results)
    if not names:
        require_store(results)
        raise UserError(f"no results in {shown(results)}: start with: quantarena run {DEFAULT}")
    return tuple(opened(results, name) for name in names)


def _planned(store: Store) -> Planned:
    """The plan of a results folder; if the plan is lost, one made from its rows."""
    if planned := store.read_planned():
        return planned
    cells = tuple(row.cell for row in store.rows())
    return Planned(store.folder.name, "quantarena run", cells)


def _short(row: Row) -> str:
    """``method@bits``; a setting of full precision is called ``fp@SETTING`` without its bits."""
    name = row.cell.configured
    return name if name.startswith(SETTING) else f"{name}@{row.cell.bits}"


def _pm(d: Difference) -> str:
    value = f"{d.mean:+.4g}"
    interval = "" if d.low is None or d.high is None else f" [{d.low:+.4g}, {d.high:+.4g}]"
    return value + interval + (f" {d.unit}" if d.unit else "")


def _known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"unknown {what} {name!r}: {did_you_mean(name, tuple(known))}")


def _simulation_table(title: str, outcomes: Sequence[Any], levels: Iterable[float]) -> Table:
    columns = ["engine", "matches"]
    for level in levels:
        columns += [f"votes to tau {level:g}", "image views"]
    columns += ["exact for good", "intervals cover", "true claims", "runs with a false claim"]
    return table(
        title,
        columns,
        [
            (
                found.engine,
                found.matcher,
                *(text for one in found.tau for text in _needed(one, found.views)),
                _needed(found.exact, found.views)[0],
                "-" if found.coverage is None else f"{100 * found.coverage:.0f} %",
                f"{found.claims:g}",
                f"{found.false_runs} of {len(found.seeds)}",
            )
            for found in outcomes
        ],
    )


def _needed(spread: Any, views: int) -> tuple[str, str]:
    """Median votes with their range, and the median of image views."""
    if spread.median is None:
        return f"{spread.reached} of {spread.runs} runs", "-"
    high = "" if spread.high is None else spread.high
    return f"{spread.median:g} [{spread.low}-{high}]", f"{spread.median * views:g}"


def _ranking_tables(value: dict[str, Any]) -> Iterable[Table | str]:
    """One table for each width of each board, and one line for each method without a rank."""
    for board in value["boards"]:
        judged = f"{board['board']['workload']}, judged by {board['metric'] or 'nothing'}"
        for bits in dict.fromkeys(s["bits"] for s in board["standings"]):
            members = [s for s in board["standings"] if s["bits"] == bits]
            yield table(
                f"{judged}, {bits}, {board['units']} prompts, {board['runs']} seed(s)",
                ("rank", "method", "loss, of the nearest [95 %]", "images won", "rank by wins"),
                [
                    (
                        _range(s["best_rank"], s["worst_rank"]),
                        s["contestant"],
                        _factor(s),
                        f"{s['wins']:.0%}",
                        _range(s["wins_best"], s["wins_worst"]),
                    )
                    for s in members
                ],
            )
        for name, reason in board["unranked"].items():
            yield f"not ranked: {name} ({reason})"
    for board in value["combined"]:
        yield table(
            f"all of {', '.join(board['workloads'])}, {board['bits']}; the interval is for a model "
            "that is not among them",
            ("rank", "method", "loss, of the nearest [95 %]"),
            [
                (
                    _range(s["best_rank"], s["worst_rank"]),
                    s["contestant"],
                    f"{s['factor']:.2f} [{s['low']:.2f}, {s['high']:.2f}]",
                )
                for s in board["standings"]
            ],
        )


def _range(best: int, worst: int) -> str:
    return f"{best}" if best == worst else f"{best}-{worst}"


def _factor(standing: dict[str, Any]) -> str:
    low, high = standing["factor_low"], standing["factor_high"]
    ends = "" if low is None or standing["factor"] == 1 else f" [{low:.2f}, {high:.2f}]"
    return f"{standing['factor']:.2f}{ends}"


def _describe(value: Any, depth: int = 0) -> list[str]:
    """A document as indented lines, without empty values."""
    pad, lines = "  " * depth, []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in items:
        label = f"{pad}{name}:" if isinstance(value, dict) else f"{pad}-"
        if item in (None, "", [], {}, ()):
            continue
        if isinstance(item, dict | list | tuple):
            lines += [label, *_describe(item, depth + 1)]
        else:
            lines.append(f"{label} {item:.6g}" if isinstance(item, float) else f"{label} {item}")
    return lines
