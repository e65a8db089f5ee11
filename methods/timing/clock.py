"""The clock that short work is timed by on one thread."""

import time
from collections.abc import Callable
from functools import cache

COARSE = 1e-4
"""Seconds between two values of a clock beyond which it cannot time a call of a millisecond."""
_LOOK = 0.05


@cache
def thread_clock() -> Callable[[], float]:
    """Seconds of this process on a processor, or the wall's where that clock moves in large steps.

    Processor time leaves out what other processes took, but some kernels of sandboxes and virtual
    machines count it in whole milliseconds, in which a call may begin and end.
    """
    return time.process_time if tick(time.process_time) < COARSE else time.perf_counter


def tick(clock: Callable[[], float]) -> float:
    """The smallest step in seconds that a clock is seen to make while this thread is busy.

    It is infinite where the clock stood still for all of a short look.
    """
    smallest, last, began = float("inf"), clock(), time.perf_counter()
    while time.perf_counter() - began < _LOOK:
        if (now := clock()) != last:
            smallest, last = min(smallest, now - last), now
    return smallest
