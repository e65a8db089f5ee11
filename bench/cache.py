"""The stage cache: a folder of stage results, each under the hash of its inputs."""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from quantarena.bench.errors import UserError
from quantarena.bench.files import work_folder

log = logging.getLogger("quantarena")
T = TypeVar("T")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Keyed(Generic[T]):
    """What a stage made, with the key that its cache entry has.

    Attributes:
        value: the result.
        key: content hash of all that the result depends on.
    """

    value: T
    key: str


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

        Two processes may make one entry at the same time; the first to finish wins.

        Raises:
            UserError: the cache cannot be written, or the disk is full.
        """
        final = self.path(stage, key)
        if final.is_dir():
            return final
        with contextlib.ExitStack() as stack:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                work = stack.enter_context(work_folder(self.root, stage))
            except OSError as error:
                raise UserError(f"cache {self.root} cannot be written: {error.strerror}") from None
            try:
                make(work)
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
        return final

    def load(
        self, stage: str, key: str, make: Callable[[Path], None], read: Callable[[Path], T]
    ) -> T:
        """The value that ``read`` finds in an entry. An unreadable entry is made again, once.

        Raises:
            UserError: the cache cannot be written, or the disk is full. Errors of ``make`` and of
                the second ``read`` are passed on.
        """
        folder = self.get(stage, key, make)
        try:
            return read(folder)
        except Exception as error:
            log.warning("cache entry %s is damaged and is made again: %s", folder, error)
        self.drop(stage, key)
        return read(self.get(stage, key, make))

    def drop(self, stage: str, key: str) -> None:
        """Delete an entry."""
        shutil.rmtree(self.path(stage, key), ignore_errors=True)
