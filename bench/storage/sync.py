"""A run's folder and its store behind a URL: what others finished comes down, what is new goes up.

A row goes up after its images and scores, so that whoever sees the row finds them. Each object is
put whole. Rows are compared by a mark of the store (its ETag, or size and time); nothing else has
to be: an object of a known name never changes but for the plan, the page and drivers' notes.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from quantarena.bench.files import write_atomic
from quantarena.bench.schema import Row
from quantarena.bench.storage.drivers import FOLDER as DRIVERS
from quantarena.bench.storage.remote import Remote, remote_of
from quantarena.bench.storage.shelves import ObjectShelf
from quantarena.bench.store import parse_row

KNOWN = ".synced.json"
PAGES = ("plan.json", "leaderboard.html", "ranking.json", "rows.csv", "rows.parquet", ".page.json")
_AT_ONCE = 256
_PLACES = ("images", "scores")
"""The artefacts of a row that name files; the others are hashes of these."""


class RunSync:
    """One run's folder and its place in a store.

    Args:
        remote: the store that the results folder mirrors.
        folder: the run's folder here.
    """

    def __init__(self, remote: Remote, folder: Path) -> None:
        self._remote = remote
        self._folder = folder
        self._known: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError):
            self._known = json.loads((folder / KNOWN).read_text(encoding="utf-8"))

    def shelf(self, name: str) -> ObjectShelf:
        """Lease records of this run."""
        return self._remote.shelf(f"{self._folder.name}/{name}")

    def require_conditions(self) -> None:
        """See that the store has conditional writes, without which two runs would double work.

        Raises:
            UserError: it has not.
        """
        self.shelf("probe").require_conditions()

    def pull(self, *, pictures: bool = True) -> None:
        """Copy what is new in the store into the folder.

        Args:
            pictures: the rows' images and scores, too, which pages and comparisons need.

        Raises:
            UserError: the store cannot be read.
        """
        names = [f"{each}.json" for each in self._new("rows")]
        self._fetch([f"rows/{name}" for name in names])
        drivers = list(self._remote.listing(self._at(DRIVERS)))
        self._fetch([f"{DRIVERS}/{name}" for name in drivers if name.endswith(".json")])
        self._fetch(list(PAGES))
        if pictures:
            for path in sorted((self._folder / "rows").glob("[!.]*.json")):
                with contextlib.suppress(OSError, ValueError):
                    self._pull_artefacts(parse_row(path.read_text(encoding="utf-8")))
        self._keep()

    def pull_row(self, key: str) -> None:
        """Copy one row, if the store has it."""
        self._fetch([f"rows/{key}.json"])

    def push_row(self, row: Row) -> None:
        """Copy a row to the store, after its images and scores.

        Raises:
            UserError: the store cannot be written.
        """
        for name, place in _places(row).items():
            mark, path = f"{name}:{place}:{row.attempt}", self._folder / place
            if self._known.get(place) == [mark] or not path.exists():
                continue
            if path.is_dir():
                self._remote.push_folder(path, self._at(place))
            else:
                self._remote.push_file(path, self._at(place))
            self._known[place] = [mark]
        self._push_file(f"rows/{row.key}.json")
        self._keep()

    def push(self, name: str, data: bytes) -> None:
        """Write an object of this run."""
        self._remote.push(self._at(name), data)

    def push_changed(self) -> None:
        """Copy rows, plan and page that are newer here."""
        names = [f"rows/{path.name}" for path in (self._folder / "rows").glob("[!.]*.json")]
        for name in (*names, *PAGES):
            path = self._folder / name
            with contextlib.suppress(FileNotFoundError):
                if self._known.get(name, [""])[0] != _numbers(path):
                    self._push_file(name)
        self._keep()

    def forget_rows(self, rows: Iterable[Row]) -> None:
        """Delete rows in the store that no longer belong to the plan."""
        for row in rows:
            self._remote.forget(self._at(f"rows/{row.key}.json"))

    def _at(self, name: str) -> str:
        return f"{self._folder.name}/{name}"

    def _new(self, folder: str) -> list[str]:
        """The stems of the store's files that this folder does not have as they are there."""
        found = []
        for name, mark in self._remote.listing(self._at(folder)).items():
            known = self._known.get(f"{folder}/{name}", ["", ""])
            if not name.endswith(".json") or (known[-1] == mark and len(known) > 1):
                continue
            self._known[f"{folder}/{name}"] = [known[0], mark]
            found.append(name.removesuffix(".json"))
        return found

    def _fetch(self, names: list[str]) -> None:
        for start in range(0, len(names), _AT_ONCE):
            part = names[start : start + _AT_ONCE]
            found = self._remote.fetch_many([self._at(name) for name in part])
            for at, data in found.items():
                name = at.partition("/")[2]
                path = self._folder / name
                if not path.is_file() or path.read_bytes() != data:
                    _write(path, data)
                known = self._known.get(name, ["", ""])
                self._known[name] = [_numbers(path), *known[1:]]

    def _pull_artefacts(self, row: Row) -> None:
        for place in _places(row).values():
            path = self._folder / place
            if path.exists():
                continue
            if path.suffix:
                self._fetch([place])
            else:
                draft = path.with_name(f".{path.name}.{os.getpid()}.work")
                draft.mkdir(parents=True, exist_ok=True)
                if self._remote.fetch_folder(self._at(place), draft):
                    with contextlib.suppress(OSError):  # another process was first
                        os.replace(draft, path)

    def _push_file(self, name: str) -> None:
        path = self._folder / name
        numbers = _numbers(path)
        self._remote.push(self._at(name), path.read_bytes())
        self._known[name] = [numbers]

    def _keep(self) -> None:
        with contextlib.suppress(Exception):  # without it, more is copied the next time
            write_atomic(self._folder / KNOWN, json.dumps(self._known))


def sync_of(folder: Path) -> RunSync | None:
    """What syncs a run's folder; None for a folder that mirrors nothing."""
    remote = remote_of(folder.parent)
    return None if remote is None else RunSync(remote, folder)


def pull(folder: Path, *, pictures: bool = True) -> None:
    """Copy what is new in the store behind a run's folder, if there is one."""
    if (sync := sync_of(folder)) is not None:
        sync.pull(pictures=pictures)


def pull_names(results: Path) -> None:
    """Make a folder for each run of the store behind a results folder, if there is one."""
    if (remote := remote_of(results)) is None:
        return
    remote.system.invalidate_cache()
    with contextlib.suppress(FileNotFoundError):
        for each in remote.system.ls(remote.root, detail=True):
            name = str(each["name"]).rstrip("/").rpartition("/")[2]
            if each.get("type") == "directory" and not name.startswith("."):
                (results / name / "rows").mkdir(parents=True, exist_ok=True)


def _places(row: Row) -> dict[str, str]:
    """Where a row's files are, by kind."""
    return {name: place for name, place in row.artefacts.items() if name in _PLACES}


def _numbers(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_bytes(data)
    os.replace(draft, path)
