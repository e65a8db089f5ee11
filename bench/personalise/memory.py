"""Resident memory around a tuning."""

import ctypes
import gc
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a tuning, above the same process without the network that is tuned.

    On a GPU ``prepared`` and ``peak`` are of its memory.

    Attributes:
        network: the network that was loaded, counted from its tensors.
        preparing: peak while weights were rounded and packed.
        prepared: resident when tuning began: weights or codes, and what learns.
        peak: peak while tuning.
    """

    network: int
    preparing: int
    prepared: int
    peak: int


def resident_bytes() -> int:
    """Resident memory of this process now, in bytes; 0 where the system does not say."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
    return 0


def give_back() -> None:
    """Return freed pages to the system, else they would hide what comes next."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
