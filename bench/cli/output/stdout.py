"""Keeps stdout for the result of a verb, whatever a plug-in or a library prints meanwhile."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

_streams: list[TextIO] = []
"""The streams of the verbs that run now, the innermost last."""


def result_stream() -> TextIO:
    """Where a verb writes its result: stdout as it was before the verb began."""
    return _streams[-1] if _streams else sys.stdout


@contextlib.contextmanager
def reserved_stdout() -> Iterator[None]:
    """Send everything that is printed inside the block to stderr, except the verb's result.

    This includes what native code and child processes write to file descriptor 1.
    """
    before = sys.stdout
    with contextlib.ExitStack() as stack:
        stream: TextIO | None = before
        if _is_descriptor_one(before):
            before.flush()
            saved = os.dup(1)
            os.dup2(2, 1)
            stack.callback(_give_back, saved, before)
            copy = os.dup(saved)
            stream = open(copy, "w", encoding=before.encoding, errors=before.errors)  # noqa: SIM115
            stack.callback(_close, stream)
        if stream is not None:
            _streams.append(stream)
            stack.callback(_streams.pop)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def abandon_stdout() -> None:
    """Send to stderr what is still printed while this process ends."""
    stdout = sys.stdout
    if not _is_descriptor_one(stdout):
        return
    with contextlib.suppress(OSError, ValueError):
        stdout.flush()
        os.dup2(2, 1)


def _is_descriptor_one(stream: TextIO | None) -> bool:
    """Whether a stream writes to file descriptor 1; replacements of ``sys.stdout`` may not."""
    try:
        return stream is not None and stream.fileno() == 1
    except (AttributeError, OSError, ValueError):
        return False


def _give_back(saved: int, stream: TextIO) -> None:
    # What is still buffered there was printed inside the block.
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    with contextlib.suppress(OSError):
        os.dup2(saved, 1)
    os.close(saved)


def _close(stream: TextIO) -> None:
    # A reader that has ended, such as head, breaks the pipe once more when the rest is flushed.
    with contextlib.suppress(OSError):
        stream.close()
