"""The errors of the harness, and the one line in which an unexpected error is told."""

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
]


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
