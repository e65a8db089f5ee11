"""Atomic writes, locks, folders of unfinished work, and one-line errors of the file system.

A killed process leaves its work folder behind, and the next one sweeps it. The owner of such a
folder holds a lock on a file beside it, which the kernel drops when the process ends, in any way.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from quantarena.bench.errors import UserError
from quantarena.methods.core.json_files import read_text as read_text
from quantarena.methods.core.json_files import require_regular as require_regular

_WORK, _LOCK, _BEFORE = ".work", ".lock", ".before"
TEMPORARY = "quantarena"
"""Name of work folders among the system's temporary files."""
_NAME_BYTES = 200
"""Bytes of a name that a work folder repeats; a file system allows 255, with what is added."""
OLD_SECONDS = 24 * 3600.0
"""Age from which a draft that has no lock counts as left behind."""
JOIN_SECONDS = 120.0
"""Time that a run has a folder to itself at most while it plans; others wait so long for it."""
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def utc_now() -> str:
    """The current time in UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def plain_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an error of the operating system into a ``UserError`` that says what to do.

    Args:
        doing: what was tried, such as ``write``.
        path: file or folder.
    """
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "free some space, then run the same command again",
            errno.EDQUOT: "the quota is used up: free some space, then run again",
            errno.EROFS: "the file system is read-only: choose another place with --results",
        }.get(error.errno or 0, "choose a writable place with --results")
        what = error.strerror or type(error).__name__
        raise UserError(f"cannot {doing} {path}: {what}; {advice}") from error


def write_atomic(path: Path, text: str) -> None:
    """Write a text file. A reader, also after a crash, sees either the old file or the new one.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    with plain_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            make_shareable(Path(name))
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        _sync_folder(path.parent)


def make_shareable(file: Path) -> None:
    """Give a file the mode of a new file; those of mkstemp and safetensors are private."""
    file.chmod(0o666 & ~umask())


def ensure_folder(folder: Path) -> None:
    """Make a folder and check that a file can be written in it.

    Raises:
        UserError: the folder cannot be made or written.
    """
    with plain_errors("write in", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@dataclass(slots=True)
class FolderLock:
    """A lock on a folder that this process has.

    Attributes:
        handle: of the lock file.
        alone: whether no other process has a lock on the folder.
    """

    handle: int
    alone: bool

    def share(self) -> None:
        """Let others have locks beside this one."""
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self.handle, fcntl.LOCK_SH | fcntl.LOCK_NB)


@contextlib.contextmanager
def locked(
    folder: Path, *, beside_others: bool = False, option: str = "--results"
) -> Iterator[FolderLock]:
    """Lock a folder for this process. The kernel unlocks it when the process ends, in any way.

    Args:
        folder: made if missing.
        beside_others: where others share a lock on the folder, take a share too. One who has the
            lock to himself for long is not waited for.
        option: of the command line that chooses another folder.

    Raises:
        UserError: another process holds the lock.
    """
    ensure_folder(folder)
    path = folder / ".lock"
    with plain_errors("lock", path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        alone = _flocked(handle, fcntl.LOCK_EX)
        if not alone and beside_others:
            until = time.monotonic() + JOIN_SECONDS
            while not (shared := _flocked(handle, fcntl.LOCK_SH)) and time.monotonic() < until:
                time.sleep(0.2)
        if not alone and not (beside_others and shared):
            raise UserError(
                f"another run is writing to {folder} ({_holder(path)}); wait for it, stop it, "
                f"or choose another folder with {option}"
            )
        note = json.dumps({"pid": os.getpid(), "host": os.uname().nodename, "since": utc_now()})
        with plain_errors("write", path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, note.encode(), 0)
        yield FolderLock(handle, alone)
    finally:
        os.close(handle)


@contextlib.contextmanager
def waited(
    path: Path, *, shared: bool = False, waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """A block with a lock on a file of this user, however long others have it.

    Args:
        path: the file, made if missing.
        shared: beside others that share it.
        waiting: called once if others have it.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def _flocked(handle: int, kind: int) -> bool:
    """Whether the lock was got; a file system that has no locks gives any."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        # Some network file systems have no locks; a run there goes on without one.
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    return True


def _holder(path: Path) -> str:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "holder unknown"


def umask() -> int:
    """The mode bits that new files of this process do not get."""
    # The mask can only be read by setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure, if the file system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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


@contextlib.contextmanager
def draft_of(folder: Path) -> Iterator[Path]:
    """A work folder for what will have that name; those that killed processes left are swept.

    Raises:
        OSError: it cannot be made.
    """
    sweep(folder.parent, f"{_short(folder.name)}-")
    with work_folder(folder.parent, folder.name) as work:
        yield work


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
        for before in sorted(parent.glob(f".{_escaped(name)}*{_BEFORE}")):
            if not before.with_suffix(_LOCK).exists():  # its owner ended in an error, not by a kill
                _finish(before.with_suffix(_LOCK))
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
            if not _finish(lock):
                return 0
            shutil.rmtree(work, ignore_errors=True)
            lock.unlink()
            return int(found)
        finally:
            os.close(handle)
    return 0


def _finish(lock: Path) -> bool:
    """Finish what ``put_in_place`` began in a process that has ended.

    Without the new folder, which was whole, the one that it was to replace gets its name back.

    Returns:
        Whether nothing is left to do. Where somebody took the name, both folders stay as they are.
    """
    before, work = lock.with_suffix(_BEFORE), lock.with_suffix(_WORK)
    if not before.is_dir():
        return True
    told = lock.read_bytes() if lock.exists() else b""
    name = os.fsdecode(told) or lock.stem.removeprefix(".").rpartition("-")[0]
    folder = lock.with_name(name)
    with contextlib.suppress(OSError):
        folder.rmdir()  # an empty folder holds nobody's work
    if not os.path.lexists(folder):
        os.replace(work if work.is_dir() else before, folder)
    elif work.is_dir():
        return False
    shutil.rmtree(before, ignore_errors=True)
    return True


def _new_lock(parent: Path, name: str) -> tuple[int, Path]:
    while True:
        handle, path = tempfile.mkstemp(prefix=f".{_short(name)}-", suffix=_LOCK, dir=parent)
        # A file system without locks has no sweep either.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A sweep may have taken the file for a dead one between these two lines.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                return handle, Path(path)
        os.close(handle)


def _short(name: str) -> str:
    return os.fsencode(name)[:_NAME_BYTES].decode(errors="ignore")


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def put_in_place(work: Path, folder: Path) -> None:
    """Rename a finished work folder to its name; what was there before is deleted after that.

    A kill between the two renames leaves a folder without its name: ``finish_replacing``.

    Args:
        work: of ``work_folder``, for the name of the folder.
        folder: beside it.
    """
    work.chmod(0o755)
    if folder.exists():
        before = work.with_suffix(_BEFORE)
        work.with_suffix(_LOCK).write_bytes(os.fsencode(folder.name))
        os.replace(folder, before)
        try:
            os.replace(work, folder)
        except BaseException:
            os.replace(before, folder)
            raise
        shutil.rmtree(before, ignore_errors=True)
    else:
        os.replace(work, folder)


def finish_replacing(folder: Path) -> None:
    """Give a folder its name back that a process did not replace to the end, because it was killed.

    Whoever opens a folder that ``put_in_place`` may replace calls this first. A living process is
    left alone.
    """
    with contextlib.suppress(OSError, ValueError):  # whatever it is, it is nothing of ours
        # a folder is replaced behind its links: the link may point to what has no name now
        for place in {os.path.abspath(folder), os.path.realpath(folder)}:
            parent, name = Path(place).parent, f"{_short(Path(place).name)}-"
            if any(parent.glob(f".{_escaped(name)}*{_BEFORE}")):
                sweep(parent, name)
