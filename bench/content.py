"""Hashes of files by their content, remembered so that large files are read once. No torch.

A small index keeps, for every file that was read, its size, its two time stamps, its inode and its
SHA-256. A file whose numbers are unchanged is not read again; a file that was replaced in place
with equal size has other time stamps and is. A time stamp younger than two seconds is not trusted:
the file may change once more within the resolution of the clock.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from quantarena.bench.errors import UserError
from quantarena.methods.core.json_files import require_regular

VARIABLE = "QUANTARENA_CACHE"
"""Environment variable that names the folder of the index; ``~/.cache/quantarena`` by default."""
_SMALL = 1 << 16
"""Bytes below which a file is read each time: that takes as long as a look at the index."""
_SETTLED_NS = 2_000_000_000

_memory: dict[str, list[Any]] = {}
_read: set[Path] = set()
_unwritten: set[str] = set()


def bytes_sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, read now.

    Raises:
        OSError: it cannot be read, or it is no regular file.
    """
    require_regular(file, file)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, from the index where the file is unchanged.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        sha256 = _known_sha256(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    _write_index()
    return sha256


def tree_sha256(folder: Path, without: Collection[str] = ()) -> str:
    """One hash of the files below a folder: their relative names and their bytes.

    Args:
        folder: the folder.
        without: endings of files that are left out.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in sorted(f for f in _files(folder) if f.suffix.lower() not in without):
        try:
            line = f"{file.relative_to(folder)}\0{_known_sha256(file)}\n"
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
        digest.update(line.encode())
    _write_index()
    return digest.hexdigest()


def listing_sha256(hashes: Mapping[str, str]) -> str:
    """One hash of named hashes, such as those of a row's images by their file names.

    It can be computed without the files, by who has their hashes alone.
    """
    lines = "".join(f"{name}\0{hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def index_file() -> Path:
    """Where the index is kept."""
    base = os.environ.get(VARIABLE)
    if base:
        return Path(base).expanduser() / "content.json"
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "quantarena" / "content.json"


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder but hidden ones and Python's own caches."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [n for n in folders if not n.startswith(".") and n != "__pycache__"]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _known_sha256(file: Path) -> str:
    status = file.stat()
    if status.st_size < _SMALL:
        return bytes_sha256(file)
    name = str(file.resolve())
    numbers = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    entry = _index().get(name)
    if entry is not None and entry[:4] == numbers:
        return str(entry[4])
    sha256 = bytes_sha256(file)
    if file.stat().st_mtime_ns != status.st_mtime_ns:
        return sha256  # it changed while it was read
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
        _index()[name] = [*numbers, sha256]
        _unwritten.add(name)
    return sha256


def _index() -> dict[str, list[Any]]:
    path = index_file()
    if path not in _read:
        _read.add(path)
        _memory.clear()
        _memory.update(_stored(path))
    return _memory


def _stored(path: Path) -> dict[str, list[Any]]:
    """The index on disk; a damaged one is as good as none, since it only saves time."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(stored, dict):
        return {}
    return {name: e for name, e in stored.items() if isinstance(e, list) and len(e) == 5}


def _write_index() -> None:
    """Write new entries; where the index cannot be written, this process still has them."""
    if not _unwritten:
        return
    path = index_file()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # another process may have added entries meanwhile
        merged = _stored(path) | {name: _memory[name] for name in _unwritten if name in _memory}
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps(merged))
        os.replace(draft, path)
    _unwritten.clear()
