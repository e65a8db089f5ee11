"""The errors of the harness, and what an unexpected error says: one line, and if memory ran out."""

import errno
import traceback

from quantarena.methods.core.errors import (
    BrokenModel,
    Interrupted,
    QuantArenaError,
    Stop,
    UnknownName,
    Unsupported,
    UserError,
    did_you_mean,
    is_interrupt,
)

__all__ = [
    "BrokenModel",
    "Interrupted",
    "QuantArenaError",
    "RunStopped",
    "Stop",
    "UnknownName",
    "Unsupported",
    "UserError",
    "did_you_mean",
    "first_line",
    "is_interrupt",
    "one_line",
    "out_of_memory",
]


_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "defaultcpuallocator",
    "alloc_failed",
)
"""What is said where no class of error says it: by torch on the CPU, by CUDA's own libraries."""


class RunStopped(QuantArenaError):
    """The machine stopped a run, by no fault of the request: the same command goes on with it."""


def one_line(error: BaseException) -> str:
    """The type, the message and the source line of an unexpected error, in one line of text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, that of the host or of a device.

    An error that we wrote ourselves never does: it explains something else.
    """
    if isinstance(error, QuantArenaError):
        return False
    torchs = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    systems = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if torchs or systems or isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in _NO_MEMORY)
