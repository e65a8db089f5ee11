"""Outlines of rows: what plans, resumed runs and counts need, without reading every row again.

A row file has some 20 KB, and reading it with all its checks takes a millisecond. An outline has a
tenth of that, and ``.outlines.json`` keeps those of all rows with the size, time stamp and
inode of their files: a file whose numbers are unchanged is not read again. The index saves time and
nothing else. It may be deleted at any time, and the newest of several writers wins.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantarena.bench import machine
from quantarena.bench.documents import read
from quantarena.bench.files import make_shareable
from quantarena.bench.schema import Latency, Row, Status
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.store import OUTLINE, Store
from quantarena.bench.target import Target

INDEX = ".outlines.json"
_FORM = 1
"""Raised with every change of what an outline holds."""
_MOST_NEW = 64
"""New outlines from which on the index is written again."""
TIMED = Latency(0.0, 0.0, 0.0, "", 1.0, 1.0, 1.0, 0.0, 1, 0, 1, "", "", 0)
"""Stands for any latency: an outline says only whether there is one."""


def outline(row: Row) -> Row:
    """The row without its numbers: it can be planned with, and no store takes it for a row.

    It keeps cell, status, reason, warnings, seconds, memory, keys of stages, attempt and times;
    of the machine what makes times comparable, and whether there is a latency.
    """
    return Row(
        cell=row.cell,
        status=row.status,
        reason=row.reason,
        latency=None if row.latency is None else TIMED,
        method={"rival": True} if row.method.get("rival") else {},
        machine={name: row.machine.get(name) for name in machine.COMPARED},
        seconds=row.seconds,
        peak_bytes=row.peak_bytes,
        stage_keys=row.stage_keys,
        warnings=row.warnings,
        started=row.started,
        finished=row.finished,
        attempt=row.attempt,
        schema_version=OUTLINE,
    )


def outlines(store: Store) -> tuple[Row, ...]:
    """The outlines of every readable row, in the order of their keys.

    Damaged files are moved aside or left out, as ``Store.rows`` does.
    """
    memory = _memory_of(store)
    found: dict[str, tuple[list[int], Row]] = {}
    for name, numbers in _files(store.rows_folder):
        kept, row = memory.rows.get(name, ([], None))
        if kept != numbers:
            row = memory.index.get(name, numbers)
        if row is None:
            whole = store.get(name.removesuffix(".json"))
            if whole is None:
                continue
            row = outline(whole)
            memory.unsaved += 1
        found[name] = (numbers, row)
    gone = memory.saved > len(found)
    if not store.foreign and (gone or memory.unsaved >= min(_MOST_NEW, 1 + len(found) // 4)):
        _write(store.folder / INDEX, ((name, *each) for name, each in found.items()))
        memory.saved, memory.unsaved = len(found), 0
    memory.rows = found
    return tuple(row for _, row in found.values())


def _files(folder: Path) -> list[tuple[str, list[int]]]:
    """The row files with their size, time stamp and inode."""
    files = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(".json") or entry.name.startswith("."):
                continue
            with contextlib.suppress(OSError):  # gone since, or a link to nowhere
                status = entry.stat()
                numbers = [status.st_size, status.st_mtime_ns, status.st_ino]
                files.append((entry.name, numbers))
    return sorted(files)


class _Index:
    """The outlines on disk, read when they are asked for; a damaged index is as good as none."""

    def __init__(self, path: Path) -> None:
        self._rows: dict[str, list[Any]] = {}
        self._shared: list[list[Any]] = [[], [], []]
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(path.read_text(encoding="utf-8"))
            if said["form"] == _FORM:
                self._shared = [
                    [read(Budget, each) for each in said["budgets"]],
                    [read(Target, each) for each in said["targets"]],
                    list(said["machines"]),
                ]
                self._rows = dict(said["rows"])
        self.size = len(self._rows)

    def get(self, name: str, numbers: list[int]) -> Row | None:
        """The outline of a file that is unchanged since."""
        kept = self._rows.pop(name, None)
        if kept is None or kept[0] != numbers:
            return None
        with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
            return self._row(kept[1])
        return None

    def _row(self, said: dict[str, Any]) -> Row:
        budgets, targets, machines = self._shared
        cell = dict(said["cell"])
        cell["budget"], cell["target"] = budgets[cell["budget"]], targets[cell["target"]]
        cell["options"] = tuple((name, value) for name, value in cell["options"])
        rest = said["rest"]
        return Row(
            cell=Cell(**cell),
            status=Status(said["status"]),
            latency=TIMED if said["timed"] else None,
            machine=machines[said["machine"]],
            schema_version=OUTLINE,
            **{**rest, "warnings": tuple(rest["warnings"])},
        )


_REST = ("reason", "method", "seconds", "peak_bytes", "stage_keys", "warnings")
_TIMES = ("started", "finished", "attempt")


@dataclass(slots=True)
class _Memory:
    """What this process knows of one folder: a run asks for the same outlines again and again.

    Attributes:
        folder: the results folder.
        index: what was on disk when it was first asked for.
        rows: size, time stamp and inode, and outline, of each row file that was there last.
        saved: number of outlines in the index on disk.
        unsaved: number of outlines that came from row files since it was written.
    """

    folder: Path
    index: _Index
    rows: dict[str, tuple[list[int], Row]]
    saved: int
    unsaved: int = 0


_last: _Memory | None = None
"""Of the folder of the run; others are asked once, and would only take room."""


def _memory_of(store: Store) -> _Memory:
    global _last
    folder = store.folder.absolute()
    if _last is not None and _last.folder == folder and not store.foreign:
        return _last
    index = _Index(folder / INDEX)
    made = _Memory(folder, index, {}, index.size)
    if not store.foreign:
        _last = made
    return made


def _write(path: Path, found: Iterable[tuple[str, list[int], Row]]) -> None:
    """Write the index; where it cannot be written, the next reader reads rows."""
    budgets: dict[Budget, int] = {}
    targets: dict[Target, int] = {}
    machines: dict[str, int] = {}
    with contextlib.suppress(OSError):
        draft = path.with_name(f"{INDEX}.{os.getpid()}.tmp")
        with open(draft, "w", encoding="utf-8") as stream:
            stream.write(f'{{"form": {_FORM}, "rows": {{')
            for number, (name, numbers, row) in enumerate(found):
                budget = budgets.setdefault(row.cell.budget, len(budgets))
                target = targets.setdefault(row.cell.target, len(targets))
                facts = json.dumps(row.machine, sort_keys=True)
                cell = {
                    name: getattr(row.cell, name)
                    for name in ("workload", "method", "bits", "seed", "variant", "policy")
                }
                said = {
                    "cell": cell
                    | {"options": row.cell.options, "budget": budget, "target": target},
                    "status": row.status,
                    "timed": row.latency is not None,
                    "machine": machines.setdefault(facts, len(machines)),
                    "rest": {name: getattr(row, name) for name in (*_REST, *_TIMES)},
                }
                stream.write(f"{', ' * (number > 0)}{json.dumps(name)}: ")
                stream.write(json.dumps([numbers, said]))
            shared = {
                "budgets": [asdict(each) for each in budgets],
                "targets": [asdict(each) for each in targets],
                "machines": [json.loads(each) for each in machines],
            }
            stream.write("}, " + json.dumps(shared)[1:] + "\n")
        make_shareable(draft)
        os.replace(draft, path)
