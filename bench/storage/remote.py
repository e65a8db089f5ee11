"""A store behind a URL, with a folder of this machine that mirrors it.

Stages and reports work on the folder. What is finished goes up as one object, which a put makes
whole or not at all: a row, a plan, a page as it is; a folder (a stage's entry, a cell's images) as
a tar file. What others finished comes down when it is asked for. Entries are named by the hash of
their inputs, so that an object of a known name never has to be compared.
"""

import contextlib
import hashlib
import importlib
import tarfile
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from quantarena.bench.content import index_file
from quantarena.bench.errors import UserError
from quantarena.bench.files import plain_errors, write_atomic
from quantarena.bench.storage.shelves import FolderShelf, ObjectShelf, Shelf, patiently

T = TypeVar("T")

ORIGIN = ".origin"
"""File of a mirror that holds the URL of its store."""
TAR = ".tar"
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


class DamagedObjectError(Exception):
    """An object of a store holds something else than what was put there."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A store behind a URL.

    Attributes:
        url: without a slash at its end.
        system: its fsspec file system.
        root: path of the store there.
    """

    url: str
    system: Any
    root: str

    def shelf(self, folder: str) -> Shelf:
        """Lease records in a folder of the store."""
        place = f"{self.root}/{folder}"
        if _is_file_system(self.system):  # links are made once; fsspec's create is not
            return FolderShelf(Path(place))
        return ObjectShelf(self.system, place)

    def exists(self) -> bool:
        """Whether the store is there: of an object store its bucket, otherwise its folder.

        True for a file system that does not tell.

        Raises:
            UserError: it cannot be asked.
        """
        bucket = getattr(self.system, "async_impl", False) and "://" not in self.root
        place = self.root.lstrip("/").partition("/")[0] if bucket else self.root

        def asked() -> bool:
            try:
                self.system.invalidate_cache()
                return bool(self.system.exists(place))
            except NotImplementedError:
                return True

        return patiently(asked, f"reach {self.url}")

    def runs(self) -> list[str]:
        """The folders of the store that may be runs.

        Raises:
            UserError: the store cannot be read.
        """

        def listed() -> list[dict[str, Any]]:
            self.system.invalidate_cache()
            try:
                return list(self.system.ls(self.root, detail=True))
            except FileNotFoundError:
                return []

        folders = [e for e in patiently(listed, f"list {self.url}") if e.get("type") == "directory"]
        names = (str(each["name"]).rstrip("/").rpartition("/")[2] for each in folders)
        return [name for name in names if name and not name.startswith(".")]

    def push(self, name: str, data: bytes) -> None:
        """Write an object, whole or not at all.

        Raises:
            UserError: the store cannot be written.
        """
        self._put(name, lambda path: self.system.pipe_file(path, data))

    def fetch(self, name: str) -> bytes | None:
        """The bytes of an object; None if there is none.

        Raises:
            UserError: the store cannot be read.
        """

        def get() -> bytes | None:
            try:
                return bytes(self.system.cat_file(f"{self.root}/{name}"))
            except FileNotFoundError:
                return None

        return self._patiently("read", name, get)

    def forget(self, name: str) -> None:
        """Delete an object, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._patiently("delete", name, lambda: self.system.rm_file(f"{self.root}/{name}"))

    def listing(self, folder: str) -> dict[str, str]:
        """The objects of a folder: a mark of the content by the name. Half-written ones are none.

        Raises:
            UserError: the store cannot be read.
        """

        def listed() -> list[dict[str, Any]]:
            self.system.invalidate_cache()
            try:
                return list(self.system.ls(f"{self.root}/{folder}", detail=True))
            except FileNotFoundError:
                return []

        marks = {}
        for each in self._patiently("list", folder, listed):
            name = str(each["name"]).rstrip("/").rpartition("/")[2]
            if each.get("type") == "file" and name and not name.endswith(".tmp"):
                stamps = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created", "size")
                marks[name] = " ".join(str(each.get(stamp, "")) for stamp in stamps)
        return marks

    def fetch_many(self, names: list[str]) -> dict[str, bytes]:
        """The bytes of several objects, asked for together; those that are gone are left out.

        Raises:
            UserError: the store cannot be read.
        """
        if not names:
            return {}
        paths = [f"{self.root}/{name}" for name in names]
        # Whole files as ranges without ends: fsspec's ``cat`` takes [, ? and * for wildcards.
        found = self._patiently(
            "read",
            names[0],
            lambda: self.system.cat_ranges(paths, None, None, on_error="return"),
        )
        for name, data in zip(names, found, strict=True):
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                raise UserError(f"cannot read {self.url}/{name} ({data})")
        return {
            name: bytes(data)
            for name, data in zip(names, found, strict=True)
            if not isinstance(data, Exception)
        }

    def push_folder(self, folder: Path, name: str) -> None:
        """Write the files below a folder as one object.

        Raises:
            UserError: the store cannot be written.
        """
        with temporary_folder() as place:
            file = Path(place) / "entry.tar"
            with tarfile.open(file, mode="w") as tar:
                for each in sorted(f for f in folder.rglob("*") if f.is_file()):
                    tar.add(each, arcname=each.relative_to(folder).as_posix(), recursive=False)
            self.push_file(file, name + TAR)

    def push_file(self, file: Path, name: str) -> None:
        """Write a file as an object, whole or not at all: large ones go up in parts.

        Raises:
            UserError: the store cannot be written.
        """
        self._put(name, lambda path: self.system.put_file(str(file), path))

    def fetch_folder(self, name: str, folder: Path) -> bool:
        """Copy the files of such an object into a folder; False if there is none.

        Raises:
            DamagedObjectError: it is no whole tar file of plain files.
            UserError: the store cannot be read.
        """
        with temporary_folder() as place:
            file = Path(place) / "entry.tar"
            path = f"{self.root}/{name}{TAR}"
            try:
                self._patiently("read", name, lambda: self.system.get_file(path, str(file)))
            except FileNotFoundError:
                return False
            try:
                with tarfile.open(file, mode="r:") as tar, plain_errors("write in", folder):
                    tar.extractall(folder, filter="data")
            except tarfile.TarError as error:
                raise DamagedObjectError(f"{self.url}/{name}{TAR}: {error}") from None
        return True

    def forget_folder(self, name: str) -> None:
        """Delete such an object."""
        self.forget(name + TAR)

    def _put(self, name: str, put: Callable[[str], object]) -> None:
        """Let an object appear whole: ``put`` writes it to the path that it is given."""
        path = f"{self.root}/{name}"

        def whole() -> None:
            if not getattr(self.system, "async_impl", False):  # object stores have no folders
                self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
            if _is_file_system(self.system):  # a file is not written whole: it is renamed
                draft = _draft(path)
                put(draft)
                self.system.mv(draft, path)
            else:
                put(path)

        try:
            self._patiently("write", name, whole)
        except FileNotFoundError as error:
            raise UserError(missing(self.url)) from error

    def _patiently(self, doing: str, name: str, call: Callable[[], T]) -> T:
        return patiently(call, f"{doing} {self.url}/{name}")


def is_url(text: str) -> bool:
    """Whether a results folder is named by a URL."""
    return "://" in text


def missing(url: str) -> str:
    """What is told of a store that is not there."""
    return f"{url} does not exist or cannot be reached: check the bucket or folder, and your rights"


def shown(folder: Path) -> str:
    """A results folder or a run as its user names it: by the URL of the store that it mirrors."""
    for place, name in ((folder, ""), (folder.parent, f"/{folder.name}")):
        with contextlib.suppress(OSError):
            return (place / ORIGIN).read_text(encoding="utf-8").strip() + name
    return str(folder)


def parted(url: str) -> tuple[str, str]:
    """The URL of a store and the name of a run, of the URL of a run.

    Raises:
        UserError: it names no run in a store.
    """
    store, _, run = url.rstrip("/").rpartition("/")
    if not store.partition("://")[2].strip("/"):
        raise UserError(
            f"{url} names no run: give the URL of a store and a run, such as {url}/quick"
        )
    return store, run


def mirror(url: str) -> Path:
    """The folder of this machine that mirrors a store, made if missing.

    Raises:
        UserError: the URL names no store that can be reached.
    """
    url = url.rstrip("/")
    open_remote(url)  # its mistakes are told before a folder is made
    folder = mirrors() / hashlib.sha256(url.encode()).hexdigest()[:16]
    if not (folder / ORIGIN).is_file():
        write_atomic(folder / ORIGIN, url + "\n")
    return folder


def mirrors() -> Path:
    """Where mirrors lie: beside the index of content, in the user's cache."""
    return index_file().parent / "mirrors"


def remote_of(folder: Path) -> Remote | None:
    """The store that a folder mirrors, or None."""
    try:
        url = (folder / ORIGIN).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return open_remote(url)


def open_remote(url: str) -> Remote:
    """The store behind a URL.

    Raises:
        UserError: unknown protocol, a library that is missing, or no path.
    """
    url = url.rstrip("/")
    protocol, _, path = url.partition("://")
    if not path.strip("/"):
        raise UserError(f"--results {url}: name a bucket or a folder after ://")
    core = importlib.import_module("fsspec.core")
    try:
        system, root = core.url_to_fs(url)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        how = f"pip install 'quantarena[{extra}]'" if extra else str(error)
        raise UserError(f"--results {url}: a library is missing: {how}") from None
    except ValueError as error:
        raise UserError(f"--results {url}: {error}") from None
    return Remote(url, system, str(root).rstrip("/"))


def _draft(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"


def _is_file_system(system: Any) -> bool:
    return "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,))


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that is gone after use, on the same disk as the mirrors."""
    mirrors().mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=mirrors(), prefix=".")
