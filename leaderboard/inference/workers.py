"""Work that is spread over the cores, in forked processes that have what this one has read.

What each part returns is the same in any process, so the number of cores changes no result. Where
forking is not safe or not worth it, everything is done here, one after the other.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
R = TypeVar("R")

FEWEST_ROWS = 1000
"""With fewer rows a fork takes as long as it saves."""
_INHERITED: list[Any] = []
"""What a forked process does and to what. It is inherited, since rows take long to be sent."""


def cores() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def may_fork(rows: int) -> bool:
    """Whether work on so many rows is spread.

    A fork copies only the thread that calls it: locks which others hold stay locked in the copy. So
    nothing is forked beside other threads, nor once torch, which starts its own, is there.
    """
    safe = threading.active_count() == 1 and "torch" not in sys.modules
    return sys.platform == "linux" and cores() > 1 and rows >= FEWEST_ROWS and safe


def each(work: Callable[[T], R], items: Sequence[T], rows: int) -> list[R]:
    """``[work(item) for item in items]``, spread over the cores.

    Args:
        work: a pure function; what it returns can be pickled.
        items: independent of one another.
        rows: number of rows behind them.
    """
    if len(items) > 1 and may_fork(rows):
        _INHERITED[:] = work, items
        try:
            fork = multiprocessing.get_context("fork")
            number = min(len(items), cores())
            # Each process has a core: threads of linear algebra would only wait for one another.
            with (
                threadpool_limits(1, "blas"),
                ProcessPoolExecutor(number, mp_context=fork) as pool,
            ):
                return list(pool.map(_one, range(len(items))))
        except (BrokenProcessPool, OSError):
            pass  # a process was killed, or there is no memory for one: it is done here
        finally:
            _INHERITED.clear()
    return [work(item) for item in items]


def _one(number: int) -> Any:
    work, items = _INHERITED
    return work(items[number])


@contextlib.contextmanager
def beside(work: Callable[[], object], rows: int) -> Iterator[None]:
    """Do something with files in a process of its own while the body runs.

    Where that process does not end well, it is done again here, and raises what it raises.

    Args:
        work: what is done; it returns nothing that is needed.
        rows: number of rows behind it.
    """
    process = None
    if may_fork(rows):
        with contextlib.suppress(OSError):
            process = multiprocessing.get_context("fork").Process(target=_quietly, args=(work,))
            process.start()
    try:
        yield
    finally:
        if process is not None:
            process.join()
    if process is None or process.exitcode:
        work()


def _quietly(work: Callable[[], object]) -> None:
    """An error is no message here: it comes again where the work is done again."""
    try:
        work()
    except BaseException:
        os._exit(1)
