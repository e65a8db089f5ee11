"""The verbs of results from many machines: ``merge``, ``submit`` and ``verify``."""

import importlib
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from quantarena.bench.cli.common import (
    RESULTS,
    JsonOption,
    ResultsOption,
    StageLines,
    Verb,
    emit,
    table,
)
from quantarena.bench.cli.execution import QuietOption
from quantarena.bench.errors import UserError
from quantarena.bench.run.reporter import Reporter

_MODULES = "quantarena.bench.share"
SHARE = 1.0
SharesOption = Annotated[
    float,
    typer.Option(
        "--rescore",
        min=0,
        max=100,
        help="Percent of each row's images that are scored again; one at least is.",
    ),
]


def merge(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Results folders, such as results/quick, and submissions.", metavar="RESULTS..."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write, such as results/all.")],
    title: Annotated[
        str, typer.Option("--title", help="Title of the page.")
    ] = "Results of several machines",
    rescore: SharesOption = SHARE,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> int:
    """Join results of several machines into one page; rows that contradict themselves stay out."""
    module, publish = _module("merge"), importlib.import_module("quantarena.bench.report.publish")
    words = ["quantarena", "merge", *map(str, results), "-o", str(out)]
    words += ["--rescore", f"{rescore:g}"] if rescore != SHARE else []
    done = module.merge(
        results,
        out,
        title=title,
        command=shlex.join(words),
        share=rescore / 100,
        progress=StageLines(Reporter(quiet=quiet)),
    )
    store = _module("store", "quantarena.bench").Store(out)
    page = publish.refresh(store, store.read_planned(), force=True)
    left_out = done.provenance.left_out
    for one in left_out:
        print(f"left out: {_line(f'{one.source}/{one.row}: {one.reason}')}", file=sys.stderr)
    emit({"page": str(page), **module.as_plain(done)}, _told(done, page), as_json=as_json)
    return 1 if left_out else 0


def submit(
    run: Annotated[
        str, typer.Argument(help="Name of a run under --results, or its folder.", metavar="RUN")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.", metavar="FOLDER")],
    name: Annotated[
        str, typer.Option("--as", help="Name of the sender or the machine. [default: the run's]")
    ] = "",
    images: Annotated[
        float,
        typer.Option(
            "--images",
            min=0,
            max=100,
            help="Percent of each row's images that go along; one at least does. 100 is all.",
        ),
    ] = SHARE,
    results: ResultsOption = RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Write a folder with rows, scores, images to check and a manifest, for others to verify."""
    _module("sync", "quantarena.bench.storage").pull(results / run, Reporter().warn)
    folder = results / run if (results / run / "rows").is_dir() else Path(run)
    if not (folder / "rows").is_dir():
        raise UserError(f"no results in {results / run}: start with: quantarena run")
    done = _module("submit").submit(
        folder, out, name=name or folder.resolve().name, share=images / 100
    )
    value = {
        "folder": str(done.folder),
        "name": done.manifest.name,
        "rows": done.rows,
        "images": done.images,
        "bytes": done.bytes,
    }
    line = (
        f"{done.rows} rows, {done.images} images, {done.bytes / 1e6:.1f} MB -> {done.folder}; "
        f"check it with: quantarena verify {shlex.quote(str(done.folder))}"
    )
    emit(value, line, as_json=as_json)


def verify(
    folder: Annotated[Path, typer.Argument(help="Folder that submit wrote.", metavar="FOLDER")],
    rescore: SharesOption = SHARE,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail for rows that are self-reported, too.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> int:
    """Exit with 0 if a submission is intact and true to its images, with 1 and its problems."""
    progress = StageLines(Reporter(quiet=quiet))
    report = _module("verify").verify(
        folder,
        share=rescore / 100,
        done=lambda count, total: progress("checking rows", count, total),
    )
    unchecked = [one for one in report.rows if one.doubts and not one.problems]
    passed = report.passed and not (strict and unchecked)
    value = {
        "passed": passed,
        "name": report.manifest.name if report.manifest else None,
        "problems": [{"where": p.where, "what": p.what} for p in report.problems],
        "rows": [
            {
                "key": one.row.key,
                "label": one.row.cell.label,
                "standing": str(one.standing),
                "not_checked": one.doubts,
                "notes": one.notes,
                "rescored": one.rescored,
                "own_word": _module("bounds").own_word(one.row),
            }
            for one in report.rows
        ],
    }
    lines = [str(problem) for problem in report.problems]
    doubts = Counter(doubt for one in unchecked for doubt in one.doubts)
    lines += [f"self-reported: {_line(doubt)} ({n} rows)" for doubt, n in doubts.items()]
    words = Counter(name for one in report.rows for name in _module("bounds").own_word(one.row))
    if words and report.passed:
        told = ", ".join(f"{name} ({n})" for name, n in words.items())
        lines.append(f"their sender's own word in verified rows too: {_line(told)}")
    counts = ", ".join(f"{count} {name}" for name, count in report.standings.items())
    lines.append(f"{'accepted' if passed else 'refused'}: {counts}" if report.rows else "refused")
    emit(value, lines, as_json=as_json)
    return 0 if passed else 1


VERBS: dict[str, Verb] = {"merge": merge, "submit": submit, "verify": verify}


def _module(name: str, package: str = _MODULES) -> Any:
    """A module that is imported when its verb runs."""
    return importlib.import_module(f"{package}.{name}")


def _line(text: str) -> str:
    line: str = _module("layout").plain_line(text, 400)
    return line


def _told(done: Any, page: Path) -> list[Table | str]:
    rows = [
        (
            _line(source.name),
            source.kind,
            source.rows,
            *(source.standings[name] for name in ("verified", "self-reported", "refused")),
        )
        for source in done.provenance.sources
    ]
    columns = ("results", "kind", "rows", "verified", "self-reported", "refused")
    counts = f"{done.rows} cells, {done.elsewhere} measured once more -> {page}"
    return [table("", columns, rows), counts]
