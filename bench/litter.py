"""Folders of unfinished work, which a killed process leaves behind and the next one sweeps.

The owner of such a folder holds a lock on a file beside it. The kernel drops the lock when the
process ends, in any way, so a sweep tells the folder of a living process from that of a dead one.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_WORK, _LOCK = ".work", ".lock"
TEMPORARY = "quantarena"
"""Name of work folders among the system's temporary files."""
OLD_SECONDS = 24 * 3600.0
"""Age from which a draft that has no lock counts as left behind."""


@contextlib.contextmanager
def work_folder(parent: Path, name: str) -> Iterator[Path]:
    """An empty folder ``.NAME-xxxx.work`` in ``parent``, which is gone after the block.

    It may be renamed inside the block.

    Raises:
        OSError: it cannot be made.
    """
    handle, lock = _new_lock(parent, name)
    work = lock.with_suffix(_WORK)
    try:
        work.mkdir(mode=0o700)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(handle)


def sweep(parent: Path, name: str = "") -> int:
    """Delete the work folders of processes that have ended; returns how many.

    Args:
        parent: where they lie; nothing happens if it does not exist.
        name: only those of that name; "" for all.
    """
    swept = 0
    with contextlib.suppress(OSError):
        for lock in sorted(parent.glob(f".{_escaped(name)}*{_LOCK}")):
            swept += _sweep_one(lock)
    return swept


def sweep_drafts(folder: Path, *, now: bool = False) -> int:
    """Delete the drafts of files that were never renamed to their names; returns how many.

    Args:
        folder: where they lie.
        now: whether nobody else writes there; otherwise only drafts of a day ago are deleted.
    """
    swept = 0
    with contextlib.suppress(OSError):
        for pattern in (".*.tmp", ".*.npz"):
            for draft in folder.glob(pattern):
                if now or time.time() - draft.stat().st_mtime > OLD_SECONDS:
                    draft.unlink()
                    swept += 1
    return swept


def _sweep_one(lock: Path) -> int:
    """Delete one work folder unless its owner lives."""
    with contextlib.suppress(OSError):
        handle = os.open(lock, os.O_RDWR)
        try:
            # An error here says that the owner lives, or that the file system knows no locks.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            work = lock.with_suffix(_WORK)
            found = work.is_dir()
            shutil.rmtree(work, ignore_errors=True)
            lock.unlink()
            return int(found)
        finally:
            os.close(handle)
    return 0


def _new_lock(parent: Path, name: str) -> tuple[int, Path]:
    while True:
        handle, path = tempfile.mkstemp(prefix=f".{name}-", suffix=_LOCK, dir=parent)
        # A file system without locks has no sweep either.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A sweep may have taken the file for a dead one between these two lines.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                return handle, Path(path)
        os.close(handle)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
