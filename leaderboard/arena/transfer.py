"""Logs as text, and several logs as one. An event has one id everywhere, so joining is a union."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from quantarena.bench.files import write_atomic
from quantarena.leaderboard.arena.events import BadEvent, Event, in_order, line, parse
from quantarena.leaderboard.arena.log import Conflict, Log, LogError

_MAGIC = b"SQLite format 3\0"


def jsonl(events: Iterable[Event]) -> str:
    """Events as JSONL by time and id: equal logs give equal bytes, however they came about."""
    return "".join(f"{line(event)}\n" for event in in_order(events))


def write_jsonl(path: Path, events: Iterable[Event]) -> int:
    """Write events as JSONL, all or nothing; returns their number.

    Raises:
        UserError: the file cannot be written.
    """
    listed = list(events)
    write_atomic(path, jsonl(listed))
    return len(listed)


def read_events(path: Path) -> list[Event]:
    """The events of a log or of a JSONL file.

    Raises:
        LogError: it does not exist, or a line is no event; the line's number is named.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_MAGIC))
            if start == _MAGIC:
                with Log(path, create=False) as log:
                    return log.events()
            stream.seek(0)
            return _parsed(path, stream)
    except OSError as error:
        raise LogError(f"cannot read {path}: {error.strerror or error}") from None


def _parsed(path: Path, lines: Iterable[bytes]) -> list[Event]:
    events = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            events.append(parse(text))
        except BadEvent as error:
            raise LogError(f"{path}, line {number}: no event: {error}") from None
    return events


def merged(logs: Iterable[Sequence[Event]]) -> list[Event]:
    """The union of several logs, in order.

    Raises:
        Conflict: two events have one id and differ.
    """
    found: dict[str, Event] = {}
    for events in logs:
        for event in events:
            if found.setdefault(event.id, event) != event:
                raise Conflict(f"two different events have the id {event.id}")
    return in_order(found.values())
