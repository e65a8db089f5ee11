"""Where lease records lie: files of a folder, or objects behind an fsspec file system. No torch.

The one thing that a shelf must do is to create a record only where there is none, whoever else
tries at the same time. A folder does it by a hard link, which NFS makes atomically too. An
object store does it by a conditional put (``If-None-Match: *``); one that ignores it is refused.
"""

import contextlib
import errno
import importlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from quantarena.bench.errors import UserError
from quantarena.bench.files import make_shareable, plain_errors

T = TypeVar("T")

WAITS = (1.0, 3.0, 9.0)
"""Seconds between the tries of a call that a store fails."""
_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
"""Codes of answers to a conditional put: there is an object already, or one comes just now."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Shelf(Protocol):
    """Holds small records by name."""

    def create(self, name: str, data: bytes) -> bool:
        """Put a record where there is none; False if there is one."""

    def read(self, name: str) -> tuple[bytes, str] | None:
        """A record and a mark that changes with each beat; None if there is none."""

    def beat(self, name: str, data: bytes) -> None:
        """Give the record another mark. The caller holds it."""

    def replace(self, name: str, data: bytes) -> None:
        """Put a record in another's place."""

    def delete(self, name: str) -> None:
        """Remove a record, if there is one."""

    def names(self) -> list[str]:
        """The names of all records."""

    def require_conditions(self) -> None:
        """See that a record is created only where there is none.

        Raises:
            UserError: two drivers could both believe to hold a lease.
        """


class FolderShelf:
    """Records as files of a folder, which is made if missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, name: str, data: bytes) -> bool:
        """Put a record where there is none; False if there is one.

        Raises:
            UserError: the folder cannot be written.
        """
        with plain_errors("write in", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = self._draft(data)
            try:
                os.link(draft, self._folder / name)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _created(self._folder / name, data)
            finally:
                draft.unlink(missing_ok=True)
        return True

    def read(self, name: str) -> tuple[bytes, str] | None:
        """A record and its time of change; opening it makes a network file system look again."""
        try:
            with open(self._folder / name, "rb") as stream:
                status = os.fstat(stream.fileno())
                return stream.read(), f"{status.st_ino} {status.st_mtime_ns}"
        except FileNotFoundError:
            return None

    def beat(self, name: str, data: bytes) -> None:
        """Touch the file."""
        os.utime(self._folder / name)

    def replace(self, name: str, data: bytes) -> None:
        """Put a record in another's place."""
        os.replace(self._draft(data), self._folder / name)

    def delete(self, name: str) -> None:
        """Remove a record, if there is one."""
        (self._folder / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """The names of all records."""
        if not self._folder.is_dir():
            return []
        return sorted(n for n in os.listdir(self._folder) if not n.startswith("."))

    def require_conditions(self) -> None:
        """Nothing is left to see: a link, and a file with ``O_EXCL``, is made once."""

    def _draft(self, data: bytes) -> Path:
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=self._folder)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        make_shareable(Path(name))
        return Path(name)


def _created(path: Path, data: bytes) -> bool:
    """Create a file where the file system has no links; a reader may see it empty for a moment."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
    return True


class ObjectShelf:
    """Records as objects. A call that fails is tried again for some seconds.

    Args:
        system: a file system of fsspec.
        root: path of the records there.
    """

    def __init__(self, system: Any, root: str) -> None:
        self._system = system
        self._root = root
        self._beats = 0

    def create(self, name: str, data: bytes) -> bool:
        """Put a record where there is none; False if there is one.

        It may be the caller's own, of a try whose answer was lost.

        Raises:
            UserError: the store cannot be reached, as in all calls.
        """

        def put() -> bool:
            try:
                if not getattr(self._system, "async_impl", False):  # object stores have no folders
                    self._system.makedirs(self._root, exist_ok=True)
                self._system.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                if _is_conflict(error):
                    return False
                raise
            return True

        return self._patiently(put)

    def require_conditions(self) -> None:
        """See that the store refuses a second create, also of two that come at the same time.

        Raises:
            UserError: it does not, so that two drivers would both believe to hold a lease.
        """
        name = f"probe-{uuid.uuid4().hex}"
        try:
            first, second = self.create(name, b"1"), self.create(name, b"2")
        finally:
            self.delete(name)
        if not first or second or not _creates_once(self._system):
            raise UserError(
                f"{self._system.unstrip_protocol(self._root)}: this store has no conditional "
                "writes (If-None-Match), so two runs could do the same work: use a store that has "
                "them, or a shared folder"
            )

    def read(self, name: str) -> tuple[bytes, str] | None:
        """A record and, as its mark, its bytes, which change with each beat."""

        def get() -> bytes | None:
            try:
                return bytes(_fresh(self._system, self._system.cat_file, self._path(name)))
            except FileNotFoundError:
                return None

        data = self._patiently(get)
        return None if data is None else (data, data.decode("utf-8", "replace"))

    def beat(self, name: str, data: bytes) -> None:
        """Write the record again with a number after it, which JSON readers skip as a line."""
        self._beats += 1
        self.replace(name, data + f"\n{self._beats}".encode())

    def replace(self, name: str, data: bytes) -> None:
        """Put a record in another's place."""
        self._patiently(lambda: self._system.pipe_file(self._path(name), data))

    def delete(self, name: str) -> None:
        """Remove a record, if there is one."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._path(name))

        self._patiently(remove)

    def names(self) -> list[str]:
        """The names of all records."""

        def listed() -> list[str]:
            try:
                return list(_fresh(self._system, self._system.ls, self._root, detail=False))
            except FileNotFoundError:
                return []

        return sorted(path.rpartition("/")[2] for path in self._patiently(listed))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, f"reach {self._system.unstrip_protocol(self._root)}")


def patiently(call: Callable[[], T], doing: str) -> T:
    """What a call of a store gives, tried again after one, three and nine seconds.

    Args:
        call: raises whatever the store's library raises.
        doing: for the line of an error, such as ``write s3://bucket/run``.

    Raises:
        UserError: it failed each time.
        FileNotFoundError: at once; it is an answer.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except (UserError, FileNotFoundError):
            raise
        except Exception as error:
            if wait is None or _is_final(error):
                said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise UserError(
                    f"cannot {doing} ({said}); what was finished is kept: run the same command "
                    "again when it is back"
                ) from error
            time.sleep(wait)
    raise AssertionError


def _fresh(system: Any, call: Callable[..., Any], *arguments: Any, **rest: Any) -> Any:
    """What a call returns without what the file system remembers of listings."""
    system.invalidate_cache()
    return call(*arguments, **rest)


def _is_final(error: Exception) -> bool:
    """Whether waiting does not help: no rights, no credentials, a full or foreign disk."""
    codes = (errno.ENOSPC, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EDQUOT)
    return (
        isinstance(error, PermissionError | NotImplementedError | ValueError | TypeError)
        or "Credential" in type(error).__name__
        or (isinstance(error, OSError) and error.errno in codes)
    )


def _creates_once(system: Any) -> bool:
    """Whether a put with mode ``create`` is one step: fsspec's own looks first and writes then."""
    if getattr(system, "async_impl", False):
        general = importlib.import_module("fsspec.asyn").AsyncFileSystem
        return type(system)._pipe_file is not general._pipe_file
    general = importlib.import_module("fsspec.spec").AbstractFileSystem
    return type(system).pipe_file is not general.pipe_file


def _is_conflict(error: BaseException | None) -> bool:
    """Whether an error or its cause says by its code that the condition of a put did not hold.

    s3fs raises errors of the operating system that are caused by botocore's ``ClientError``; gcsfs
    raises ``HttpError``, whose code is a number or its text. What a message says decides nothing:
    names and sizes stand in it.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.EEXIST:
            return True
        if _code(error) in _CONFLICTS:
            return True
        error = error.__cause__
    return False


def _code(error: BaseException) -> str:
    """The store's own code in an error, or the status of its answer; empty without either."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        said = response.get("Error", {}).get("Code")
        return str(said or response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    found = (getattr(error, name, None) for name in ("code", "status_code", "status"))
    return next((str(code) for code in found if isinstance(code, int | str)), "")
