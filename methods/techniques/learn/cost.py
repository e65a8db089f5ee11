"""Measures the cost of a piece of work: wall and CPU time, resident memory, device memory."""

import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

import torch

from quantarena.methods.core.model.model import QuantizedModel

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Measures the cost of the work inside its ``with`` block.

    Peaks are those of the whole process, so two meters must not overlap. On systems other than
    Linux ``rss_growth`` is 0.

    Attributes:
        seconds: wall time.
        cpu_seconds: processor time of all threads.
        rss_growth: peak resident memory minus that at the start, in bytes.
        device_bytes: peak memory of tensors on the CUDA device in bytes; 0 without a device.
    """

    __slots__ = ("_cpu", "_rss", "_wall", "cpu_seconds", "device_bytes", "rss_growth", "seconds")

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self.rss_growth = self.device_bytes = 0

    def __enter__(self) -> "Meter":
        _forget_peak()
        self._rss = _status("VmRSS")
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._wall
        self.cpu_seconds = time.process_time() - self._cpu
        self.rss_growth = max(0, _status("VmHWM") - self._rss)
        if torch.cuda.is_available():
            self.device_bytes = torch.cuda.max_memory_allocated()


def note_training(
    model: QuantizedModel, updates: int, rows: int, images: Collection[int] = ()
) -> None:
    """Add to what the model's notes say of its training, whatever trained.

    Args:
        model: the model that was trained.
        updates: optimiser steps, of all blocks together.
        rows: rows that went forward and backward in them, of a block or of the whole network.
        images: recorded images that they came from, where the draws of the context do not say so.
            Of several trainings the note has the number of all together, each counted once.
    """
    before = model.notes.get("training", {"updates": 0, "rows": 0})
    note = {"updates": before["updates"] + updates, "rows": before["rows"] + rows}
    model.taught.update(images)
    if model.taught:
        note["images"] = len(model.taught)
    model.notes["training"] = note


def _status(name: str) -> int:
    """A size in bytes from /proc/self/status; 0 where there is no such file."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith(f"{name}:")), 0)


def _forget_peak() -> None:
    """Reset the recorded peaks of resident and device memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR.write_text("5")
    except OSError:
        return
