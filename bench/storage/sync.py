"""A run's folder and its store behind a URL: what others finished comes down, what is new goes up.

A row goes up after its images and scores, so that whoever sees the row finds them. Each object is
put whole. Rows are compared by a mark of the store (its ETag, or size and time); nothing else has
to be: an object of a known name never changes but for the plan, the page and drivers' notes.
"""

import contextlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from quantarena.bench.files import put_in_place, work_folder, write_atomic
from quantarena.bench.schema import Row
from quantarena.bench.storage.drivers import FOLDER as DRIVERS
from quantarena.bench.storage.remote import Remote, remote_of
from quantarena.bench.storage.shelves import Shelf
from quantarena.bench.store import parse_row

KNOWN = ".synced.json"
PAGES = ("plan.json", "leaderboard.html", "ranking.json", "rows.csv", "rows.parquet", ".page.json")
_AT_ONCE = 256


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

    def shelf(self, name: str) -> Shelf:
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
                if (row := _row(path)) is not None:
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
        for place, mark in _places(row).items():
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

    def push_changed(self, keys: Collection[str]) -> None:
        """Copy rows, plan and page that are newer here, or that the store has lost.

        Args:
            keys: of the planned cells; lost rows of other cells stay lost.

        Raises:
            UserError: the store cannot be written.
        """
        there = self._remote.listing(self._at("rows"))
        for path in sorted((self._folder / "rows").glob("[!.]*.json")):
            lost = path.name not in there and path.stem in keys
            if (lost or self._is_new(f"rows/{path.name}")) and (row := _row(path)) is not None:
                if lost:
                    for place in _places(row):
                        self._known.pop(place, None)
                self._push_row(row)
        there = self._remote.listing(self._folder.name)
        for name in PAGES:
            if (self._folder / name).is_file() and (name not in there or self._is_new(name)):
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
        """Copy a row's images and scores, unless those that lie here are this row's own."""
        for place, mark in _places(row).items():
            path = self._folder / place
            if path.exists() and self._known.get(place) == [mark]:
                continue
            if path.suffix:
                self._fetch([place])
                self._known[place] = [mark]
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with work_folder(path.parent, path.name) as draft:
                if self._remote.fetch_folder(self._at(place), draft):
                    put_in_place(draft, path)
                    self._known[place] = [mark]

    def _is_new(self, name: str) -> bool:
        """Whether a file has changed here since it was copied."""
        return self._known.get(name, [""])[0] != _numbers(self._folder / name)

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


def _row(path: Path) -> Row | None:
    """The row in a file, or None if it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        return parse_row(path.read_text(encoding="utf-8"))
    return None


def _places(row: Row) -> dict[str, str]:
    """Where a row's files are, each with a mark of what is in them.

    A row that others wrote names no other places than its own.
    """
    own = {"images": f"images/{row.key}", "scores": f"scores/{row.key}.npz"}
    files = {name: place for name, place in own.items() if row.artefacts.get(name) == place}
    return {
        place: f"{name} {row.artefacts.get(f'{name}_sha256', f'attempt {row.attempt}')}"
        for name, place in files.items()
    }


def _numbers(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_bytes(data)
    os.replace(draft, path)
