"""A run's folder and its store behind a URL: what others finished comes down, what is new goes up.

A row goes up after its images and scores, so that whoever sees the row finds them. Each object is
put whole. Rows are compared by a mark of the store (its ETag, or size and time); nothing else has
to be: an object of a known name never changes but for the plan, the page and drivers' notes.

The folder remembers which rows it has seen in the store, and how their files were here. A row that
was made or changed here since then is *unsent*: only this folder has it, and no sync takes it away.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from quantarena.bench.errors import UserError
from quantarena.bench.files import put_in_place, work_folder, write_atomic
from quantarena.bench.schema import Row
from quantarena.bench.storage.artefacts import (
    artefact_sha256,
    forget_artefact,
    places,
    stated_sha256,
)
from quantarena.bench.storage.drivers import FOLDER as DRIVERS
from quantarena.bench.storage.remote import DamagedObjectError, Remote, missing, remote_of
from quantarena.bench.storage.shelves import Shelf
from quantarena.bench.storage.versions import is_the_same_with_more, ours_stands
from quantarena.bench.store import Store, Warn, parse_row

KNOWN = ".synced.json"
IDENTITY = ".store-id"
"""Object of a run that is made once. A store without it, or with another one, has lost its rows;
where it is there, rows that are not were deleted."""
PAGES = ("plan.json", "leaderboard.html", "ranking.json", "rows.csv", "rows.parquet", ".page.json")
_AT_ONCE = 256


class RunSync:
    """One run's folder and its place in a store.

    Args:
        remote: the store that the results folder mirrors.
        folder: the run's folder here.
        warn: called with one line for what a sync does that nobody may expect.
    """

    def __init__(self, remote: Remote, folder: Path, warn: Warn = lambda line: None) -> None:
        self._remote = remote
        self._folder = folder
        self._warn = warn
        self._store = Store(folder, warn)
        self._known: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError):
            self._known = json.loads((folder / KNOWN).read_text(encoding="utf-8"))

    def shelf(self, name: str) -> Shelf:
        """Lease records of this run."""
        return self._remote.shelf(f"{self._folder.name}/{name}")

    def require_conditions(self) -> None:
        """See that the store has conditional writes, without which two runs would double work.

        Raises:
            UserError: it has not, or there is no such store.
        """
        try:
            self.shelf("probe").require_conditions()
        except FileNotFoundError as error:
            raise UserError(missing(self._remote.url)) from error

    def pull(self, *, pictures: bool = True) -> None:
        """Copy what is new in the store into the folder, and retire what was deleted there.

        A row that was seen in the store and is not there any more is moved into ``rows/earlier``,
        unless it is unsent. Of two rows of one cell that differ, one stands (``versions.py``) and
        the other is kept in ``rows/earlier``.

        Args:
            pictures: the rows' images and scores, too, which pages and comparisons need.

        Raises:
            UserError: the store cannot be read.
        """
        there = self._remote.listing(self._at("rows"))
        self._retire_deleted(there)
        self._fetch(self._new(there))
        drivers = list(self._remote.listing(self._at(DRIVERS)))
        self._fetch([f"{DRIVERS}/{name}" for name in drivers if name.endswith(".json")])
        self._fetch([*PAGES, IDENTITY])
        if pictures:
            for path in sorted((self._folder / "rows").glob("[!.]*.json")):
                # An unsent row has its own pictures; those in the store are another row's.
                if not self._is_new(f"rows/{path.name}") and (row := _row(path)) is not None:
                    self._pull_artefacts(row)
        self._keep()

    def pull_row(self, key: str) -> None:
        """Copy one row, if the store has it."""
        self._fetch([f"rows/{key}.json"])

    def push_row(self, row: Row) -> None:
        """Copy a row to the store, after its images and scores.

        Raises:
            UserError: the store cannot be written.
        """
        self._push_row(row)
        self._keep()

    def _push_row(self, row: Row) -> None:
        for place, mark in places(row).items():
            path = self._folder / place
            if self._known.get(place) == [mark] or not path.exists():
                continue
            if path.is_dir():
                self._remote.push_folder(path, self._at(place))
            else:
                self._remote.push_file(path, self._at(place))
            self._known[place] = [mark]
        self._push_file(f"rows/{row.key}.json")

    def push(self, name: str, data: bytes) -> None:
        """Write an object of this run."""
        self._remote.push(self._at(name), data)

    def push_changed(self) -> None:
        """Copy rows that are unsent, and the plan and page where they are newer here or lost there.

        Raises:
            UserError: the store cannot be written.
        """
        for path in sorted((self._folder / "rows").glob("[!.]*.json")):
            if self._is_new(f"rows/{path.name}") and (row := _row(path)) is not None:
                self._push_row(row)
        there = self._remote.listing(self._folder.name)
        if IDENTITY not in there:
            write_atomic(self._folder / IDENTITY, uuid.uuid4().hex)
            self._push_file(IDENTITY)
        for name in PAGES:
            if (self._folder / name).is_file() and (name not in there or self._is_new(name)):
                self._push_file(name)
        self._keep()

    def forget_rows(self, rows: Iterable[Row]) -> None:
        """Delete rows in the store that no longer belong to the plan."""
        for row in rows:
            self._remote.forget(self._at(f"rows/{row.key}.json"))
            self._forget(row.key)

    def _at(self, name: str) -> str:
        return f"{self._folder.name}/{name}"

    def _new(self, there: Mapping[str, str]) -> list[str]:
        """The store's row files that this folder does not have as they are there."""
        found = []
        for name, mark in there.items():
            known = self._known.get(f"rows/{name}", ["", ""])
            if not name.endswith(".json") or (known[-1] == mark and len(known) > 1):
                continue
            self._known[f"rows/{name}"] = [known[0], mark]
            found.append(f"rows/{name}")
        return found

    def _retire_deleted(self, there: Mapping[str, str]) -> None:
        """Move rows into ``earlier`` that were seen in the store and are not there any more.

        If the store is not the one in which they were seen, it has lost them: they go up again.
        """
        seen = (name for name in self._known if name.startswith("rows/"))
        gone = [name for name in seen if name.removeprefix("rows/") not in there]
        if not gone:
            return
        intact = self._identity() is not None and self._identity() == self._identity_there()
        retired = []
        for name in gone:
            key, unsent = Path(name).stem, self._is_new(name)
            self._forget(key)
            if intact and not unsent and (row := self._store.get(key)) is not None:
                retired.append(row)
        self._store.retire(retired)
        if retired:
            self._warn(
                f"{len(retired)} row(s) were deleted in {self._remote.url}/{self._folder.name} "
                f"(the first is {retired[0].cell.label}): moved to {self._folder}/rows/earlier"
            )

    def _identity(self) -> bytes | None:
        path = self._folder / IDENTITY
        return path.read_bytes() if path.is_file() else None

    def _identity_there(self) -> bytes | None:
        return self._remote.fetch(self._at(IDENTITY))

    def _forget(self, key: str) -> None:
        """Forget that a row and its files were seen in the store."""
        for name in (f"rows/{key}.json", f"images/{key}", f"scores/{key}.npz"):
            self._known.pop(name, None)

    def _fetch(self, names: list[str]) -> None:
        for start in range(0, len(names), _AT_ONCE):
            part = names[start : start + _AT_ONCE]
            found = self._remote.fetch_many([self._at(name) for name in part])
            for at, data in found.items():
                self._arrive(at.partition("/")[2], data)

    def _arrive(self, name: str, data: bytes) -> None:
        """Put an object of the store into the folder, unless it is a row that does not stand."""
        path = self._folder / name
        before = path.read_bytes() if path.is_file() else None
        if before != data:
            if before is not None and name.startswith("rows/") and self._stays(name, data):
                return
            _write(path, data)
        known = self._known.get(name, ["", ""])
        self._known[name] = [_numbers(path), *known[1:]]

    def _stays(self, name: str, data: bytes) -> bool:
        """Whether the row here stands against another one of the store; the other one is kept."""
        path, mark = self._folder / name, self._known.get(name, ["", ""])[1:]
        ours, unsent = self._store.get(path.stem), self._is_new(name)
        if ours is None:
            return False
        theirs = _parsed(data)
        if theirs is None or theirs.key != ours.key:
            # never written over: it may be a newer form
            self._known[name] = [_numbers(path), *mark]
            there = f"{self._remote.url}/{self._at(name)}"
            self._warn(f"{there} is no row that this version reads: {path} stays")
            return True
        if not ours_stands(ours, theirs, unsent=unsent):
            if not is_the_same_with_more(ours, theirs):
                self._store.keep_earlier(ours)
            return False
        if not is_the_same_with_more(theirs, ours):
            self._store.keep_earlier(theirs)
        self._forget(ours.key)
        self._known[name] = ["", *mark]  # unsent, and compared with this one already
        return True

    def _pull_artefacts(self, row: Row) -> None:
        """Copy a row's images and scores, unless those that lie here are this row's own.

        What the store has is compared with the hash that the row states. If it differs, it is not
        taken, and asked for again the next time: until then the row has none.
        """
        for place, mark in places(row).items():
            path, stated = self._folder / place, stated_sha256(row, place)
            if path.exists() and self._known.get(place) == [mark]:
                continue
            if stated is None or not path.exists() or artefact_sha256(path) != stated:
                try:
                    if not self._take(place, stated):
                        continue
                except DamagedObjectError as error:
                    self._known.pop(place, None)
                    if stated is not None:  # what lies here is another attempt's
                        forget_artefact(path)
                    self._warn(
                        f"{row.cell.label}: its {place.partition('/')[0]} in {self._remote.url}/"
                        f"{self._folder.name} are left out ({error}); the next sync asks again"
                    )
                    continue
            self._known[place] = [mark]

    def _take(self, place: str, stated: str | None) -> bool:
        """Copy images or scores from the store; False if it has none.

        Raises:
            DamagedObjectError: they are not what the row states.
        """
        path = self._folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        with work_folder(path.parent, path.name) as work:
            draft = work / path.name if path.suffix else work
            if draft is work:
                found = self._remote.fetch_folder(self._at(place), work)
            else:
                data = self._remote.fetch(self._at(place))
                found = data is not None
                draft.write_bytes(data or b"")
            if not found:
                return False
            if stated is not None and artefact_sha256(draft) != stated:
                raise DamagedObjectError("their hash is not the one that the row states")
            if draft is work:
                put_in_place(work, path)
            else:
                os.replace(draft, path)
        return True

    def _is_new(self, name: str) -> bool:
        """Whether a file has changed here since it was copied; one that is not here has not."""
        with contextlib.suppress(FileNotFoundError):
            return self._known.get(name, [""])[0] != _numbers(self._folder / name)
        return False

    def _push_file(self, name: str) -> None:
        path = self._folder / name
        numbers = _numbers(path)
        self._remote.push(self._at(name), path.read_bytes())
        self._known[name] = [numbers]

    def _keep(self) -> None:
        with contextlib.suppress(Exception):  # without it, more is copied the next time
            write_atomic(self._folder / KNOWN, json.dumps(self._known))


def sync_of(folder: Path, warn: Warn = lambda line: None) -> RunSync | None:
    """What syncs a run's folder; None for a folder that mirrors nothing."""
    remote = remote_of(folder.parent)
    return None if remote is None else RunSync(remote, folder, warn)


def pull(folder: Path, warn: Warn = lambda line: None, *, pictures: bool = True) -> None:
    """Copy what is new in the store behind a run's folder, if there is one."""
    if (sync := sync_of(folder, warn)) is not None:
        sync.pull(pictures=pictures)


def pull_names(results: Path) -> None:
    """Make a folder for each run of the store behind a results folder, if there is one."""
    if (remote := remote_of(results)) is None:
        return
    for name in remote.runs():
        (results / name / "rows").mkdir(parents=True, exist_ok=True)


def _row(path: Path) -> Row | None:
    """The row in a file, or None if it is damaged."""
    with contextlib.suppress(OSError):
        return _parsed(path.read_bytes())
    return None


def _parsed(data: bytes) -> Row | None:
    """The row in a file's bytes, or None if they are damaged."""
    with contextlib.suppress(ValueError):
        return parse_row(data.decode("utf-8"))
    return None


def _numbers(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_bytes(data)
    os.replace(draft, path)
