"""The descriptors 0 to 2 of a process, which foreign code may close or point elsewhere."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator

_NAMES = {0: "standard input", 1: "standard output", 2: "standard error"}
_OUT_OF_THE_WAY = 64
"""Copies have higher numbers than what a method is likely to close one by one."""
Identity = tuple[int, int, int]
"""Device, inode and access mode of an open file."""


@contextlib.contextmanager
def kept_descriptors(lost: Callable[[str], object]) -> Iterator[None]:
    """Open the standard descriptors again after the block where it closed or moved them.

    Args:
        lost: called with a line for each descriptor that could not be opened again.
    """
    copies = {number: _copy(number) for number in _NAMES if _identity(number) is not None}
    before = {number: _identity(number) for number in copies}
    try:
        yield
    finally:
        for number, copy in copies.items():
            if _identity(number) != before[number]:
                with contextlib.suppress(OSError):
                    os.dup2(copy, number)
            with contextlib.suppress(OSError):
                os.close(copy)
            if _identity(number) != before[number]:
                lost(f"the descriptor of the {_NAMES[number]} (it is closed)")


def _copy(number: int) -> int:
    try:
        return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
    except OSError:  # few files may be open
        return os.dup(number)


def _identity(number: int) -> Identity | None:
    """What a descriptor is open on; None where it is closed."""
    try:
        status = os.fstat(number)
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        return None
    return status.st_dev, status.st_ino, mode
