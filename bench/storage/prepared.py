"""What the shared stages of a workload, seed and budget took, kept beside the stage cache.

A row says what its cell took. Shared stages belong to many cells, so the driver keeps one note for
each of their tasks in ``.cache/.prepared/``, with the cache entries that the task made or used.
"""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from quantarena.bench.documents import read
from quantarena.bench.files import utc_now, write_atomic
from quantarena.bench.spec import Cell
from quantarena.bench.storage.stages import Use

FOLDER = ".prepared"


@dataclass(frozen=True, slots=True)
class Prepared:
    """The shared stages of one task, when they were made.

    Attributes:
        cell: the cell for which they were made.
        stamp: hash of the code and the model that they depend on.
        at: when, UTC in ISO 8601.
        uses: the cache entries that the task made or used.
    """

    cell: Cell
    stamp: str
    at: str
    uses: tuple[Use, ...]

    def there(self, cache: Path) -> bool:
        """Whether all entries still exist."""
        return bool(self.uses) and all((cache / use.entry).is_dir() for use in self.uses)


def note_prepared(cache: Path, cell: Cell, stamp: str, uses: tuple[Use, ...]) -> None:
    """Keep a note of a task that has ended well."""
    note = Prepared(cell, stamp, utc_now(), uses)
    path = cache / FOLDER / f"{cell.shared_key}.json"
    write_atomic(path, json.dumps(asdict(note), indent=1) + "\n")


def prepared(cache: Path, shared_key: str) -> Prepared | None:
    """The note of one shared key; None where there is none, or a damaged one."""
    return _read(cache / FOLDER / f"{shared_key}.json")


def all_prepared(cache: Path) -> tuple[Prepared, ...]:
    """All notes; damaged ones are left out, since they only help to estimate."""
    notes = (_read(path) for path in sorted((cache / FOLDER).glob("*.json")))
    return tuple(note for note in notes if note is not None)


def _read(path: Path) -> Prepared | None:
    with contextlib.suppress(OSError, ValueError):
        return read(Prepared, json.loads(path.read_text(encoding="utf-8")))
    return None
