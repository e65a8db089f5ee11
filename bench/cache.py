"""A folder of stage results under content hashes. Entries appear whole or not at all."""

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from quantarena.bench.errors import UserError

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
    """Entries are folders ``STAGE-KEY``.

    Args:
        root: made when missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, stage: str, key: str) -> Path:
        """Where an entry is, or would be."""
        return self.root / f"{stage}-{key}"

    def get(self, stage: str, key: str, make: Callable[[Path], None]) -> Path:
        """The entry, made by ``make`` in an empty folder when it is not there yet.

        Two processes may make one entry at the same time; the first to finish wins.

        Raises:
            UserError: the folder cannot be written or the disk is full.
        """
        final = self.path(stage, key)
        if final.is_dir():
            return final
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{stage}-", dir=self.root))
        except OSError as error:
            raise UserError(f"cache {self.root} cannot be written: {error.strerror}") from None
        try:
            make(work)
            try:
                os.replace(work, final)
            except OSError:
                if not final.is_dir():  # else another process was first, and its entry is as good
                    raise
        except OSError as error:
            if error.errno not in _DISK:  # a method's own missing file is not the cache's fault
                raise
            raise UserError(f"cache {self.root} cannot be written: {error.strerror}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return final

    def load(
        self, stage: str, key: str, make: Callable[[Path], None], read: Callable[[Path], T]
    ) -> T:
        """What ``read`` finds in the entry; an entry that cannot be read is made again, once.

        Raises:
            UserError: as ``get``; besides, whatever ``make`` and the second ``read`` raise.
        """
        folder = self.get(stage, key, make)
        try:
            return read(folder)
        except Exception as error:
            log.warning("cache entry %s is damaged and is made again: %s", folder, error)
        self.drop(stage, key)
        return read(self.get(stage, key, make))

    def drop(self, stage: str, key: str) -> None:
        """Forget an entry, for one that turned out to be damaged."""
        shutil.rmtree(self.path(stage, key), ignore_errors=True)
