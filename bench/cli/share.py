"""The verbs of results from many machines: ``merge``, ``submit`` and ``verify``."""

import importlib
import os
import shlex
import sys
import tempfile
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
    opened,
    table,
)
from quantarena.bench.cli.execution import QuietOption
from quantarena.bench.errors import UserError
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.storage.remote import is_url, mirror, parted, remote_of

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


_COPY = "copy the submission to a folder of this machine"


def out_place(text: str) -> Path:
    """The folder that a verb is to write, which is replaced as a whole.

    Raises:
        UserError: it is a URL, the current folder or one around it, or cannot be written.
    """
    if is_url(text):
        raise UserError(f"-o {text}: it must be a folder of this machine, which you may then copy")
    out = Path(text)
    here, place = Path.cwd(), out.resolve()
    if place == here or place in here.parents:
        raise UserError(f"-o {text}: you are in this folder, which would be replaced: name another")
    there = next(folder for folder in place.parents if os.path.lexists(folder))
    for folder in (there, place) if place.is_dir() else (there,):
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise UserError(
                f"cannot write in {folder}: {why}; choose a writable place with -o"
            ) from error
    return out


def merge(
    results: Annotated[
        list[str],
        typer.Argument(
            help="Results folders, such as results/quick, their URLs, and submissions.",
            metavar="RESULTS...",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            *("-o", "--out"),
            parser=out_place,
            help="Folder to write, such as results/all.",
            metavar="FOLDER",
        ),
    ],
    title: Annotated[
        str, typer.Option("--title", help="Title of the page.")
    ] = "Results of several machines",
    rescore: SharesOption = SHARE,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> int:
    """Join results of several machines into one page; rows that contradict themselves stay out."""
    module, publish = _module("merge"), importlib.import_module("quantarena.bench.report.publish")
    words = ["quantarena", "merge", *map(_argument, results), "-o", str(out)]
    words += ["--rescore", f"{rescore:g}"] if rescore != SHARE else []
    folders = [_run_of(each) if is_url(each) else Path(each) for each in results]
    done = module.merge(
        folders,
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
        str,
        typer.Argument(help="Name of a run under --results, its folder or its URL.", metavar="RUN"),
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", parser=out_place, help="Folder to write.", metavar="FOLDER"),
    ],
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
    if is_url(run):
        folder = _run_of(run)
    else:
        folder = results / run
        _module("sync", "quantarena.bench.storage").pull(folder, Reporter().warn)
        if not (folder / "rows").is_dir():
            folder = Path(run) if (Path(run) / "rows").is_dir() else opened(results, run).folder
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
        f"check it with: quantarena verify {shlex.quote(_argument(done.folder))}"
    )
    emit(value, line, as_json=as_json)


def verify(
    folder: Annotated[str, typer.Argument(help="Folder that submit wrote.", metavar="FOLDER")],
    rescore: SharesOption = SHARE,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail for rows that are self-reported, too.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> int:
    """Exit with 0 if a submission is intact and true to its images, with 1 and its problems."""
    if is_url(folder):
        raise UserError(f"{folder} is a URL: {_COPY}, then verify that one")
    progress = StageLines(Reporter(quiet=quiet))
    report = _module("verify").verify(
        Path(folder),
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


def _run_of(url: str) -> Path:
    """The folder that mirrors a run behind a URL, with all that the store has of it.

    Raises:
        UserError: there is no such run.
    """
    store, name = parted(url)
    results = mirror(store)
    remote = remote_of(results)
    if remote is not None and remote.fetch(f"{name}/{_module('layout').MANIFEST}") is not None:
        raise UserError(f"{url} is a submission, no run: {_COPY}, and name that one")
    return opened(results, name).folder


def _argument(path: Path | str) -> str:
    """A path as an argument of a command line, where none may look like an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


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
