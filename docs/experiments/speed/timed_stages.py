"""The stages of a run, each call of which adds its seconds to a file: for ``run_overhead.py``.

It stands in for ``quantarena.bench.stages.sequence``, in whatever process a task runs.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from quantarena.bench.stages import sequence
from quantarena.bench.stages.sequence import Paths

__all__ = ["SPANS", "Paths", "prepare", "run_cell", "time_cell"]

SPANS = "RUN_OVERHEAD_SPANS"
"""The environment variable with the file's name."""
P = ParamSpec("P")
R = TypeVar("R")


def timed(stage: Callable[P, R]) -> Callable[P, R]:
    """The same stage; a line of the file says what each call took, also of one that raises."""

    @functools.wraps(stage)
    def call(*given: P.args, **named: P.kwargs) -> R:
        began = time.monotonic()
        try:
            return stage(*given, **named)
        finally:
            with open(os.environ[SPANS], "a", encoding="utf-8") as file:
                file.write(f"{time.monotonic() - began}\n")

    return call


prepare = timed(sequence.prepare)
run_cell = timed(sequence.run_cell)
time_cell = timed(sequence.time_cell)
