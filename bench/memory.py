"""Resident memory of this process: its peak, and how much a piece of work adds to it."""

import ctypes
import gc
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def peak_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """Resident memory of this process now, in bytes; Linux only."""
    return _status("VmRSS")


def trim() -> None:
    """Give freed memory back to the system, which an allocator may keep; glibc only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def peak_growth(run: Callable[[], object]) -> int:
    """Peak resident memory during ``run`` above what was resident before, in bytes.

    Freed pages go back to the system first, else an allocator that kept them would hide the need.
    Linux with glibc only (it resets the process's high-water mark); 0 where it cannot be read.
    """
    before: int | None = None
    with suppress(OSError, KeyError, AttributeError):
        trim()
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes()
    run()  # outside of the guards: what it raises is not ours
    if before is None:
        return 0
    try:
        return max(0, _status("VmHWM") - before)
    except (OSError, KeyError):
        return 0


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields[name].split()[0]) * 1024
