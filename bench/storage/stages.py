"""How the stage caches of several processes share their entries: by turns, one maker an entry.

A process that wants an entry takes the lease of its name. Where another one has it, it waits: when
that one has finished, the entry is there; when it has died, the lease comes free.
"""

import contextlib
import functools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantarena.bench import machine
from quantarena.bench.cache import MADE, Sharing, sharing
from quantarena.bench.storage.leases import Leases
from quantarena.bench.storage.remote import TAR, DamagedObjectError, Remote, remote_of
from quantarena.bench.storage.shelves import FolderShelf

CACHE = ".cache"
"""Folder of the stage cache among the runs of a results folder."""
LEASES = ".leases"
"""Folder of the leases of a cache, or of a results folder."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Use:
    """One stage that a task needed.

    Attributes:
        entry: name of the cache entry, ``STAGE-KEY``.
        seconds: that making it took, whenever that was.
        size: bytes of the entry.
        machine: processor, cores and GPU of its maker.
    """

    entry: str
    seconds: float
    size: int
    machine: tuple[tuple[str, Any], ...] = ()

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return self.entry.rpartition("-")[0]


class SharedStages(Sharing):
    """Entries of one cache folder, shared with every process that uses it, and with a remote one.

    Args:
        cache: folder of the cache.
        remote: the store behind the folder, if there is one.
    """

    def __init__(self, cache: Path, remote: Remote | None = None) -> None:
        self._remote = remote
        shelf = FolderShelf(cache / LEASES) if remote is None else remote.shelf(f"{CACHE}/{LEASES}")
        self._leases = Leases(shelf)
        self.uses: dict[str, Use] = {}
        self._there: set[str] | None = None  # objects of the remote store; None before a look

    @contextlib.contextmanager
    def turn(self, entry: Path) -> Iterator[None]:
        """Wait until nobody else makes that entry."""
        pause = _POLL_SECONDS
        while (lease := self._leases.take(entry.name)) is None:
            if entry.is_dir():
                break
            time.sleep(pause)
            pause = min(2.0, pause * 1.2)
        try:
            yield
        finally:
            if lease is not None:
                self._leases.release(lease)

    def fetch(self, entry: Path, work: Path) -> bool:
        """Copy the entry from the remote store; a damaged one is none, and is made again."""
        with contextlib.suppress(DamagedObjectError):
            return self._remote is not None and self._remote.fetch_folder(
                f"{CACHE}/{entry.name}", work
            )
        return False

    def push(self, entry: Path) -> None:
        """Copy the entry to the remote store."""
        if self._remote is not None:
            self._remote.push_folder(entry, f"{CACHE}/{entry.name}")
            if self._there is not None:
                self._there.add(f"{entry.name}{TAR}")

    def forget(self, entry: Path) -> None:
        """Delete the entry in the remote store."""
        if self._remote is not None:
            self._remote.forget_folder(f"{CACHE}/{entry.name}")

    def used(self, entry: Path) -> None:
        """Note that an entry is used, and see that others can have it.

        One whose maker died before it was copied, or whose copy was lost, is copied now.
        """
        if self._remote is not None:
            if self._there is None:
                self._there = set(self._remote.listing(CACHE))
            if f"{entry.name}{TAR}" not in self._there:
                self.push(entry)
        if entry.name not in self.uses and (use := use_of(entry)) is not None:
            self.uses[entry.name] = use

    def facts(self) -> dict[str, Any]:
        """Processor, cores and GPU of this machine."""
        found = machine.fingerprint()
        return {name: found[name] for name in machine.COMPARED}


def use_of(entry: Path) -> Use | None:
    """What an entry says of its making; None for one that says nothing, or that is gone."""
    try:
        said = json.loads((entry / MADE).read_text(encoding="utf-8"))
        facts = tuple((name, said.get(name)) for name in machine.COMPARED)
        return Use(entry.name, float(said["seconds"]), int(said["bytes"]), facts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@functools.cache
def _of_process(cache: Path) -> SharedStages:
    """One for all tasks of a process: it has the leases."""
    return SharedStages(cache, remote_of(cache.parent))


@contextlib.contextmanager
def shared_stages(cache: Path) -> Iterator[dict[str, Use]]:
    """Share the entries of a cache inside the block; gives the stages that it uses, by entry."""
    shared = _of_process(cache)
    shared.uses = {}
    with sharing(shared):
        yield shared.uses
