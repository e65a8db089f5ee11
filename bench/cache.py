"""The stage cache: a folder of stage results, each under the hash of its inputs."""

import contextlib
import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from quantarena.bench.errors import UserError, out_of_memory
from quantarena.bench.files import work_folder

log = logging.getLogger("quantarena")
T = TypeVar("T")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
MADE = ".made.json"
"""File of an entry that says what making it took: ``seconds``, ``bytes``, and on which machine."""


@dataclass(frozen=True, slots=True)
class Keyed(Generic[T]):
    """What a stage made, with the key that its cache entry has.

    Attributes:
        value: the result.
        key: content hash of all that the result depends on.
    """

    value: T
    key: str


class Sharing:
    """What a process agrees on with others that use the same cache; this one agrees on nothing.

    Who starts stages may install another one (``sharing``). It is no part of any stage's result,
    so no stage imports it.
    """

    def turn(self, entry: Path) -> AbstractContextManager[None]:
        """A block in which nobody else makes that entry; it may exist when the block begins."""
        return contextlib.nullcontext()

    def fetch(self, entry: Path, work: Path) -> bool:
        """Copy an entry that exists elsewhere into an empty folder; False if there is none."""
        return False

    def push(self, entry: Path) -> None:
        """Copy a new entry to where others look for it."""

    def forget(self, entry: Path) -> None:
        """Delete a damaged entry elsewhere."""

    def used(self, entry: Path) -> None:
        """Note that an entry, which exists, is used."""

    def facts(self) -> dict[str, Any]:
        """What a new entry says of the machine that made it."""
        return {}


_sharing = Sharing()
_nested: list[float] = []
"""Seconds that entries took which were made inside the present one, innermost last."""


@contextlib.contextmanager
def sharing(chosen: Sharing) -> Iterator[None]:
    """Let all caches of this process share their entries in that way, inside the block."""
    global _sharing
    before, _sharing = _sharing, chosen
    try:
        yield
    finally:
        _sharing = before


class StageCache:
    """A cache whose entries are folders named ``STAGE-KEY``, whole or absent.

    Args:
        root: folder of the cache, made if missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, stage: str, key: str) -> Path:
        """The folder of an entry, whether it exists or not."""
        return self.root / f"{stage}-{key}"

    def get(self, stage: str, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of an entry. If there is none, ``make`` writes it into an empty folder.

        Two processes may make one entry at the same time; the first to finish wins. Where they
        share their work, the second waits for the first instead.

        Raises:
            UserError: the cache cannot be written, or the disk is full.
        """
        final = self.path(stage, key)
        if not final.is_dir():
            with self._errors():
                self.root.mkdir(parents=True, exist_ok=True)
            with _sharing.turn(final):
                if not final.is_dir():
                    self._fill(stage, final, make)
        _sharing.used(final)
        return final

    def _fill(self, stage: str, final: Path, make: Callable[[Path], None]) -> None:
        with contextlib.ExitStack() as stack:
            with self._errors():
                work = stack.enter_context(work_folder(self.root, stage))
            fetched = _sharing.fetch(final, work)
            try:
                if not fetched:
                    _timed(work, make)
                try:
                    os.replace(work, final)
                except OSError:
                    if not final.is_dir():  # else another process was first, with an equal entry
                        raise
            except OSError as error:
                # Others are no errors of the cache, such as a method's missing file.
                if error.errno not in _DISK:
                    raise
                raise UserError(f"cache {self.root} cannot be written: {error.strerror}") from error
            if not fetched:
                _sharing.push(final)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cache {self.root} cannot be written: {error.strerror}") from None

    def load(
        self, stage: str, key: str, make: Callable[[Path], None], read: Callable[[Path], T]
    ) -> T:
        """The value that ``read`` finds in an entry. A damaged entry is made again, once.

        Raises:
            UserError: the cache cannot be written, or the disk is full. Errors of ``make`` and of
                the second ``read`` are passed on.
        """
        folder = self.get(stage, key, make)
        try:
            return read(folder)
        except Exception as error:
            if _says_nothing(error):
                raise
            log.warning("cache entry %s is damaged and is made again: %s", folder, error)
        self.drop(stage, key)
        return read(self.get(stage, key, make))

    def drop(self, stage: str, key: str) -> None:
        """Delete an entry."""
        _sharing.forget(self.path(stage, key))
        shutil.rmtree(self.path(stage, key), ignore_errors=True)


def _says_nothing(error: Exception) -> bool:
    """Whether an error of reading says nothing of the entry: no memory, no handle is left."""
    no_handle = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    return no_handle or out_of_memory(error)


def _timed(work: Path, make: Callable[[Path], None]) -> None:
    """Make an entry, and note the seconds that it took by itself and its bytes."""
    began = time.perf_counter()
    _nested.append(0.0)
    try:
        make(work)
    finally:
        whole = time.perf_counter() - began
        own = max(0.0, whole - _nested.pop())
        if _nested:
            _nested[-1] += whole
    size = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    said = {"seconds": round(own, 3), "bytes": size, **_sharing.facts()}
    (work / MADE).write_text(json.dumps(said), encoding="utf-8")
