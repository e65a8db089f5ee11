"""The verb ``vote``, which serves the arena, and the verbs ``votes ...`` on its logs."""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import time
import uuid
import webbrowser
from collections.abc import Iterable, Iterator
from enum import StrEnum
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
from quantarena.bench.errors import Interrupted, UserError
from quantarena.bench.report import publish
from quantarena.bench.run.reporter import Reporter

PORT = 8420
LOG_NAME = "votes.sqlite"
FolderArgument = Annotated[
    str,
    typer.Argument(
        metavar="RESULTS", help="A results folder with images, or the name of a run in --results."
    ),
]
LogArgument = Annotated[
    Path, typer.Argument(metavar="LOG", help="A log, its JSONL, or the results folder with one.")
]
LogOption = Annotated[
    Path | None,
    typer.Option("--log", metavar="FILE", help=f"The log; by default RESULTS/{LOG_NAME}."),
]


class Task(StrEnum):
    """What voters are asked."""

    FIDELITY = "fidelity"
    PREFERENCE = "preference"


class EngineName(StrEnum):
    """A ranking engine, see docs/ranking.md."""

    JOINT = "joint"
    KSORT = "ksort"


class Kind(StrEnum):
    """Who judged."""

    HUMAN = "human"
    AUTOMATIC = "automatic"
    VLM = "vlm"


TaskOption = Annotated[
    Task, typer.Option("--task", help="Ask for the nearest to full precision, or the best liked.")
]
EngineOption = Annotated[
    EngineName, typer.Option(help="What turns votes into a board and chooses the next set.")
]
SizeOption = Annotated[int, typer.Option("--k", min=2, max=8, help="Images of a set.")]
ReferenceOption = Annotated[
    bool | None,
    typer.Option(
        "--reference/--no-reference",
        help="Show full precision's image beside the others. By default it is shown for the task "
        "fidelity only.",
    ),
]
WorkloadOption = Annotated[
    list[str] | None, typer.Option("--workload", help="Vote on this workload; repeatable.")
]


def vote(
    run: FolderArgument,
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on; 0.0.0.0 for phones in your network."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes any free one.")
    ] = PORT,
    k: SizeOption = 4,
    reference: ReferenceOption = None,
    task: TaskOption = Task.FIDELITY,
    log: LogOption = None,
    workload: WorkloadOption = None,
    gold: Annotated[
        float, typer.Option("--gold", min=0, max=0.5, help="Share of sets that check attention.")
    ] = 0.05,
    repeats: Annotated[
        float, typer.Option("--repeats", min=0, max=0.5, help="Share of sets that are asked again.")
    ] = 0.05,
    hours: Annotated[
        float, typer.Option("--expires", min=0.01, help="Hours until an unanswered set is void.")
    ] = 24.0,
    per_minute: Annotated[
        float, typer.Option("--per-minute", min=1, help="Answers a minute of one voter at most.")
    ] = 60.0,
    most_votes: Annotated[
        int, typer.Option("--most-votes", min=0, help="Votes of one voter at most; 0 is no limit.")
    ] = 0,
    origin: Annotated[
        list[str] | None,
        typer.Option("--origin", help="Address of a proxy in front, https://NAME; repeatable."),
    ] = None,
    engine: EngineOption = EngineName.JOINT,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    results: ResultsOption = RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Serve a page on which people order blind images of a run; Ctrl-C ends it."""
    missing = [name for name in ("starlette", "uvicorn") if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(f"vote needs {' and '.join(missing)}: pip install 'quantarena[arena]'")
    folder = _folder(run, results)
    server, app = _arena("web.server"), _arena("web.app")
    settings = _settings(
        task,
        k,
        reference,
        gold=gold,
        repeats=repeats,
        expires=hours * 3600,
        most_votes=most_votes,
        page=app.page_version(),
    )
    reporter = Reporter()

    with _plainly(), contextlib.suppress(Interrupted, KeyboardInterrupt):
        catalogue = _catalogue(folder, settings, workload)
        for problem in catalogue.problems:
            reporter.warn(problem)
        with server.opened_arena(
            catalogue,
            log or folder / LOG_NAME,
            settings,
            _arena("engines.named").engine(engine.value),
            server.Address(host, port, tuple(origin or ())),
            per_minute=per_minute,
        ) as serving:
            place, path = serving.place, serving.log.path
            if not place.local:
                reporter.warn(f"{host} is open to your network: everybody there can vote")
            where = f"vote at {place.url} - votes go to {path} - Ctrl-C ends it"
            value = {"url": place.url, "log": str(path), "pid": os.getpid()}
            emit(value, where, as_json=as_json)
            if open_page:
                webbrowser.open(place.url)
            serving.run()
    return 0


def export(
    log: LogArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", metavar="FILE")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the events of a log as JSONL, to stdout or into a file."""
    transfer = _arena("transfer")
    with _plainly():
        events = transfer.read_events(_log(log))
        if output is None:
            plain = [dataclasses.asdict(event) for event in _arena("events").in_order(events)]
            emit(plain, transfer.jsonl(events).rstrip("\n"), as_json=as_json)
            return
        count = transfer.write_jsonl(output, events)
    emit({"file": str(output), "events": count}, f"{output}: {count} events", as_json=as_json)


def import_events(
    log: LogArgument,
    files: Annotated[list[Path], typer.Argument(help="JSONL files, or other logs.")],
    as_json: JsonOption = False,
) -> None:
    """Add the events of other logs to a log; what is there already is not added twice."""
    transfer = _arena("transfer")
    with _plainly():
        events = transfer.merged(transfer.read_events(_log(path)) for path in files)
        with _arena("log").Log(_log(log, fresh=True)) as target:
            new = target.append(events)
    value = {"log": str(log), "events": len(events), "new": new}
    emit(value, f"{log}: {new} new of {len(events)} events", as_json=as_json)


def merge(
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="New file: a log, or JSONL if named *.jsonl.")
    ],
    logs: Annotated[list[Path], typer.Argument(help="Logs of several arenas, or their JSONL.")],
    as_json: JsonOption = False,
) -> None:
    """Join the logs of several arenas in a new one."""
    transfer = _arena("transfer")
    if output.exists():
        raise UserError(f"{output} is there already: to add to it, use: quantarena votes import")
    with _plainly():
        events = transfer.merged(transfer.read_events(_log(path)) for path in logs)
        if output.suffix == ".jsonl":
            transfer.write_jsonl(output, events)
        else:
            with _arena("log").Log(output) as target:
                target.append(events)
    value = {"file": str(output), "events": len(events), "logs": len(logs)}
    emit(value, f"{output}: {len(events)} events of {len(logs)} logs", as_json=as_json)


def replay(
    log: LogArgument,
    judged_by: Annotated[
        list[Kind] | None,
        typer.Option("--judges", help="Votes of these judges count; repeatable. [default: human]"),
    ] = None,
    corrected: Annotated[
        bool,
        typer.Option("--corrected", help="Show what programs' votes make of people's as well."),
    ] = False,
    engine: EngineOption = EngineName.JOINT,
    as_json: JsonOption = False,
) -> None:
    """Rank again from a log: equal events give equal bytes."""
    module = _arena("replay")
    kinds = frozenset(kind.value for kind in judged_by or (Kind.HUMAN,))
    standings = _arena("engines.named").engine(engine.value).standings
    with _plainly():
        events = _arena("transfer").read_events(_log(log))
        boards = module.replay(events, standings, kinds=kinds, correct=corrected)
    emit(
        json.loads(module.document(boards)),
        _tables(_arena("words").board_words(boards)) or "no votes",
        as_json=as_json,
    )


def quality(log: LogArgument, as_json: JsonOption = False) -> None:
    """Show each judge's agreement, consistency, failed checks and influence."""
    with _plainly():
        judges = _arena("quality").quality(_arena("transfer").read_events(_log(log)))
    shown = _tables([_arena("words").quality_words(judges)])
    emit([dataclasses.asdict(one) for one in judges], shown, as_json=as_json)


def void(
    log: LogArgument,
    votes: Annotated[list[str], typer.Argument(help="Ids of votes.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, in words.")],
    as_json: JsonOption = False,
) -> None:
    """Take votes back: they stay in the log, with the reason, and count no more."""
    events = _arena("events")
    with _plainly(), _arena("log").Log(_log(log), create=False) as target:
        known = {event.id for event in target.events() if event.kind == "vote"}
        if strange := sorted(set(votes) - known):
            raise UserError(f"no vote {strange[0]} in {target.path}")
        if len(reason) > 500 or not reason.isprintable():
            raise UserError("the reason is no line of at most 500 characters")
        now = events.stamp(time.time())
        made = [
            events.VoidEvent(str(uuid.uuid4()), now, target.arena, name, reason)
            for name in dict.fromkeys(votes)
        ]
        target.append(made)
    emit(
        {"voided": [one.vote for one in made]},
        f"{_arena('words').many(len(made), 'vote')} taken back",
        as_json=as_json,
    )


def judge(
    run: FolderArgument,
    name: Annotated[
        str, typer.Argument(metavar="JUDGE", help="pixels, FILE.py:NAME, or MODULE:NAME.")
    ],
    wanted: Annotated[
        int, typer.Option("--votes", min=1, help="Votes of this judge in the log at the end.")
    ] = 100,
    per_minute: Annotated[
        float, typer.Option("--per-minute", min=0, help="Calls a minute at most; 0 is no limit.")
    ] = 0.0,
    k: SizeOption = 4,
    reference: ReferenceOption = None,
    task: TaskOption = Task.FIDELITY,
    log: LogOption = None,
    workload: WorkloadOption = None,
    results: ResultsOption = RESULTS,
    engine: EngineOption = EngineName.JOINT,
    as_json: JsonOption = False,
) -> None:
    """Let a program judge blind sets; the same command goes on where it stopped."""
    folder = _folder(run, results)
    judges, sets = _arena("judges"), _arena("sets")
    lines = StageLines(Reporter())
    with _plainly():
        program = judges.load(name)
        kinds = frozenset({Kind.HUMAN.value, program.kind})
        settings = _settings(task, k, reference, gold=0.0, repeats=0.0, kinds=kinds)
        catalogue = _catalogue(folder, settings, workload)
        with _arena("log").Log(log or folder / LOG_NAME) as target:
            desk = sets.Desk(
                target, catalogue, settings, _arena("engines.named").engine(engine.value)
            )
            done = judges.ask(
                program,
                desk,
                wanted,
                judges.Rate(per_minute),
                lambda made, all_of_them: lines(f"judge {program.name}", made, all_of_them),
            )
    rest = "" if done >= wanted else "; what is left was answered before"
    text = f"{program.name}: {done} votes in {target.path}{rest}"
    emit({"judge": program.name, "votes": done, "log": str(target.path)}, text, as_json=as_json)


def schema(as_json: JsonOption = False) -> None:
    """Show the JSON schema of an event, one line of an export."""
    found = _arena("events").schema()
    emit(found, json.dumps(found, indent=2), as_json=as_json)


VERBS: dict[str, Verb] = {"vote": vote}
GROUP_HELP = "Export, import, merge, replay and examine the votes of an arena."
GROUP: dict[str, Verb] = {
    "export": export,
    "import": import_events,
    "merge": merge,
    "replay": replay,
    "quality": quality,
    "void": void,
    "judge": judge,
    "schema": schema,
}


def _arena(module: str) -> Any:
    return publish.leaderboard(f"arena.{module}")


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Errors of the arena, which knows no ``UserError``, in one line."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def _folder(name: str, results: Path) -> Path:
    """A results folder by its path, or by the name of its run."""
    path = Path(name)
    return path if (path / "rows").is_dir() else opened(results, name).folder


def _log(path: Path, *, fresh: bool = False) -> Path:
    """The log that a path means: in a results folder, the one that ``vote`` writes."""
    found = path / LOG_NAME if path.is_dir() else path
    if not fresh and not found.is_file():
        raise UserError(f"no votes in {found}: start with: quantarena vote RESULTS")
    return found


def _settings(task: Task, size: int, reference: bool | None, **others: Any) -> Any:
    """How sets are asked: what people and programs have in common, and what is given beside it."""
    shown = task is Task.FIDELITY if reference is None else reference
    return _arena("deal").Settings(task=task.value, size=size, reference=shown, **others)


def _catalogue(folder: Path, settings: Any, workload: list[str] | None) -> Any:
    return _arena("catalogue").read_catalogue(
        folder, task=settings.task, reference=settings.reference, workloads=tuple(workload or ())
    )


def _tables(found: Iterable[Any]) -> list[Table]:
    """Tables of the arena as those of the command line."""
    return [table(one.title, one.columns, one.rows) for one in found]
