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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantarena.bench.content import index_file
from quantarena.bench.errors import UserError
from quantarena.bench.files import write_atomic
from quantarena.bench.storage.shelves import ObjectShelf

ORIGIN = ".origin"
"""File of a mirror that holds the URL of its store."""
TAR = ".tar"
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


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

    def shelf(self, folder: str) -> ObjectShelf:
        """Lease records in a folder of the store."""
        return ObjectShelf(self.system, f"{self.root}/{folder}")

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
        with self._errors("read", name):
            try:
                return bytes(self.system.cat_file(f"{self.root}/{name}"))
            except FileNotFoundError:
                return None

    def forget(self, name: str) -> None:
        """Delete an object, if it exists."""
        with self._errors("delete", name), contextlib.suppress(FileNotFoundError):
            self.system.rm_file(f"{self.root}/{name}")

    def listing(self, folder: str) -> dict[str, str]:
        """The objects of a folder: a mark of the content by the name. Half-written ones are none.

        Raises:
            UserError: the store cannot be read.
        """
        with self._errors("list", folder):
            self.system.invalidate_cache()
            try:
                found = self.system.ls(f"{self.root}/{folder}", detail=True)
            except FileNotFoundError:
                return {}
        marks = {}
        for each in found:
            name = str(each["name"]).rstrip("/").rpartition("/")[2]
            if each.get("type") == "file" and name and not name.endswith(".tmp"):
                stamps = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created", "size")
                marks[name] = " ".join(str(each.get(stamp, "")) for stamp in stamps)
        return marks

    def fetch_many(self, names: list[str]) -> dict[str, bytes]:
        """The bytes of several objects, asked for together; those that are gone are left out."""
        paths = {f"{self.root}/{name}": name for name in names}
        if not paths:
            return {}
        with self._errors("read", names[0]):
            found = self.system.cat(list(paths), on_error="return")
        if isinstance(found, bytes):  # of one path it is no dictionary
            return {names[0]: found}
        byname = {paths.get(path) or paths[f"/{path}"]: data for path, data in found.items()}
        for name, data in byname.items():
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                raise UserError(f"cannot read {self.url}/{name} ({data})")
        return {name: bytes(data) for name, data in byname.items() if isinstance(data, bytes)}

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
        """Copy the files of such an object into a folder; False without an intact one.

        Raises:
            UserError: the store cannot be read.
        """
        with temporary_folder() as place, self._errors("read", name):
            file = Path(place) / "entry.tar"
            try:
                self.system.get_file(f"{self.root}/{name}{TAR}", str(file))
                with tarfile.open(file) as tar:
                    tar.extractall(folder, filter="data")
            except (FileNotFoundError, tarfile.TarError):
                return False
        return True

    def forget_folder(self, name: str) -> None:
        """Delete such an object."""
        self.forget(name + TAR)

    def _put(self, name: str, put: Callable[[str], object]) -> None:
        """Let an object appear whole: ``put`` writes it to the path that it is given."""
        path = f"{self.root}/{name}"
        with self._errors("write", name):
            if not getattr(self.system, "async_impl", False):  # object stores have no folders
                self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
            if _is_file_system(self.system):  # a file is not written whole: it is renamed
                draft = _draft(path)
                put(draft)
                self.system.mv(draft, path)
            else:
                put(path)

    @contextlib.contextmanager
    def _errors(self, doing: str, name: str) -> Iterator[None]:
        try:
            yield
        except (UserError, FileNotFoundError):
            raise
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"cannot {doing} {self.url}/{name} ({said})") from error


def is_url(text: str) -> bool:
    """Whether a results folder is named by a URL."""
    return "://" in text


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
