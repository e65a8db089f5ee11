"""The options and the output that all verbs share, and verbs whose options are a dataclass."""

import inspect
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantarena.bench.cli.output.stdout import result_stream
from quantarena.bench.documents import clean_text, finite
from quantarena.bench.errors import UserError, did_you_mean
from quantarena.bench.files import finish_replacing
from quantarena.bench.plan.plan import minutes
from quantarena.bench.plan.presets import DEFAULT
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.storage.remote import is_url, mirror, missing, parted, remote_of, shown
from quantarena.bench.storage.sync import pull, pull_names
from quantarena.bench.store import Store

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def results_place(text: str | Path) -> Path:
    """The results folder that a text names; of a URL, the folder that mirrors it here.

    Raises:
        UserError: a URL that names no store, or whose library is missing.
    """
    return mirror(str(text)) if is_url(str(text)) else Path(text)


ResultsOption = Annotated[
    Path,
    typer.Option(
        "--results",
        parser=results_place,
        help="Folder that holds one folder per run, or its URL, such as s3://bucket/results.",
        metavar="DIR|URL",
    ),
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", help="Python file that registers methods; repeatable.", metavar="FILE"
    ),
]
RunArgument = Annotated[
    str, typer.Argument(help="Name of a run: a preset, or a folder under --results.")
]
RESULTS = Path("results")
_SAY_EVERY = 5.0
"""Seconds between two lines about a stage that goes on."""
Verb = Callable[..., int | None]
T = TypeVar("T")


def emit(value: Any, text: str | Table | Iterable[str | Table] = "", *, as_json: bool) -> None:
    """Print a result: ``value`` as JSON, or ``text`` for people."""
    stream = result_stream()
    if as_json:
        # What JSON does not know becomes plain first: texts of other types, then NaN and infinity.
        plain = json.loads(json.dumps(value, default=str))
        json.dump(clean_text(finite(plain)), stream, indent=2, allow_nan=False)
        stream.write("\n")
        stream.flush()
        return
    # A pipe has no width; 80 columns there would cut names that a reader greps for.
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else 200)
    for part in [text] if isinstance(text, str | Table) else text:
        if isinstance(part, Table):
            if part.title:
                # Not as the table's own title, which is folded to the table's width.
                console.print(part.title, markup=False, style="bold", soft_wrap=True)
                part.title = None
            console.print(part)
        else:
            stream.write(f"{part}\n")
    stream.flush()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A plain table; cells are shown as they are, without markup."""
    made = Table(title=title, box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(value)) for value in row))
    return made


def opened(results: Path, name: str, reporter: Reporter | None = None) -> Store:
    """The store of a finished or running run.

    Raises:
        UserError: there is no such run.
    """
    folder, reporter = results / name, reporter or Reporter()
    finish_replacing(folder)
    pull(folder, reporter.warn)
    if not os.path.isdir(folder / "rows"):
        require_store(results)
        known = run_names(results)
        hint = did_you_mean(name, known) if known else "nothing was run here yet"
        verb = name if name != "." else DEFAULT
        raise UserError(f"no results in {shown(folder)}: {hint}; start with: quantarena run {verb}")
    return Store(folder, reporter.warn)


def opened_run(results: Path, name: str) -> Store:
    """The store of a run that has begun, by its name or its folder; it may have no row yet.

    Raises:
        UserError: there is no such run.
    """
    if is_url(name):
        url, name = parted(name)
        results = mirror(url)
    for folder in (results / name, Path(name)):
        finish_replacing(folder)
    pull(results / name, Reporter().warn, pictures=False)
    for folder in (results / name, Path(name)):
        if any(os.path.isdir(folder / part) for part in ("rows", "drivers")):
            return Store(folder, Reporter().warn)
    return opened(results, name)


def require_store(results: Path) -> None:
    """Refuse a results folder that mirrors a store which is not there.

    Raises:
        UserError: it does.
    """
    if (remote := remote_of(results)) is not None and not remote.exists():
        raise UserError(missing(remote.url))


def run_names(results: Path) -> tuple[str, ...]:
    """Runs that have rows; hidden folders are unfinished work."""
    if not results.is_dir():
        return ()
    pull_names(results)
    return tuple(sorted(path.parent.name for path in results.glob("[!.]*/rows") if path.is_dir()))


def listed(option: str, values: Iterable[str] | None) -> tuple[str, ...]:
    """An option that may be repeated and may hold commas, as one tuple.

    Args:
        option: its name, for the message.
        values: as given on the command line.

    Raises:
        UserError: a part is empty, which would silently stand for the default.
    """
    parts = tuple(part.strip() for value in values or () for part in value.split(","))
    if "" in parts:
        raise UserError(f"{option}: a name in it is empty: give one, or leave the option out")
    return parts


class StageLines:
    """Lines on stderr: when a stage begins, and now and then how far it is, with an estimate."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self._stage = reporter, ""
        self._began = self._said = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._said = stage, now, now
            self._reporter.say(f"  {stage}")
        elif 0 < done < total and now - self._said > _SAY_EVERY:
            left = (now - self._began) / done * (total - done)
            self._said = now
            self._reporter.say(f"  {stage} {done}/{total}, about {minutes(left)} left")


def takes(kind: type[T]) -> Callable[[Callable[..., int | None]], Verb]:
    """Give a verb the fields of a dataclass as parameters, in front of its own.

    The verb's first parameter receives the dataclass. A field's type is ``Annotated`` with the
    typer option that reads it.

    Args:
        kind: the dataclass; every field has a default.
    """
    shared = [_parameter(field) for field in fields(kind)]  # type: ignore[arg-type]

    def decorate(verb: Callable[..., int | None]) -> Verb:
        _, *rest = inspect.signature(verb).parameters.values()
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in rest]

        def command(**given: Any) -> int | None:
            values = {p.name: given.pop(p.name) for p in shared if p.name in given}
            return verb(kind(**values), **given)

        command.__name__, command.__doc__ = verb.__name__, verb.__doc__
        command.__module__ = verb.__module__
        parameters = [*shared, *own]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _parameter(field: Field[Any]) -> inspect.Parameter:
    assert field.default is not MISSING, f"{field.name} has no default"
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=field.type,
    )
