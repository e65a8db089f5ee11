"""Chooses the instruction set of this machine: by a short measurement, once, and then by memory.

Which unit is fastest depends on more than what a processor has: some lower their clock for wide
registers, some split wide registers in halves. So the first process on a machine times all usable
units on a few small layers (some ten milliseconds) and writes the answer to the user's cache, under
a key of the processor, the library and its units. Later processes read it. Of processes that
measure at the same time, all take the answer of the first that has written.
"""

import contextlib
import ctypes
import hashlib
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from quantarena.methods.core.json_files import parse_json
from quantarena.methods.core.kernels import native

CACHE = "QUANTARENA_CACHE"
"""Environment variable that names the folder of the cache; ``~/.cache/quantarena`` by default."""
MEASURED = "the fastest in a measurement on this machine"
ONLY = "the only one to choose from"
_MARGIN = 1.03
"""An earlier unit of the list is taken if it is that close to the fastest: order breaks ties."""
_PASSES, _CALLS = 3, 2
_LONGEST = 1 << 12
"""Bytes of an answer that are read."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A layer to time: a square image of pixels, or rows of a matrix where ``kernel`` is 1.

    Attributes:
        bits: width of the weights.
        channels: input channels, a multiple of 16.
        outputs: output channels, a multiple of 16.
        size: height and width of the image; of a matrix, its rows.
        kernel: height and width of the filter.
        last: whether the channels of a pixel lie side by side.
    """

    bits: int
    channels: int
    outputs: int
    size: int
    kernel: int = 1
    last: bool = True


SHAPES = (
    Shape(8, 320, 320, 64),
    Shape(4, 128, 512, 96),
    Shape(4, 64, 64, 16, kernel=3),
    Shape(8, 64, 64, 16, kernel=3, last=False),
)


class _Job:
    """One shape with random codes, ready to run on any unit."""

    def __init__(self, shape: Shape) -> None:
        units, panels = shape.channels * shape.kernel**2 // 16, shape.outputs // 16
        pixels = shape.size**2 if shape.kernel > 1 else shape.size
        make = torch.Generator().manual_seed(0)
        size = (panels * units * 32 * shape.bits,)
        self._arrays = {
            "codes": torch.randint(0, 256, size, generator=make, dtype=torch.uint8),
            "chunk_start": torch.arange(panels + 1, dtype=torch.int32) * units,
            "chunk_units": torch.ones(panels * units, dtype=torch.int16),
            "weight_scale": torch.ones(shape.outputs),
            "weight_sum": torch.zeros(shape.outputs, dtype=torch.int32),
            "act_scale": torch.tensor([8 / 255]),
            "act_zero": torch.tensor([128], dtype=torch.int32),
        }
        self._x = torch.randn(pixels * shape.channels, generator=make)
        self._y = torch.empty(pixels * shape.outputs)
        self._shape = shape
        values = dict.fromkeys((field[0] for field in native.LayerStruct._fields_), 0)
        values |= {"weight_bits": shape.bits, "act_max": 255, "groups": 1}
        values |= {"out_channels": shape.outputs, "units": units, "panels": panels}
        values |= {"in_channels": shape.channels, "in_padded": shape.channels, "table_size": 1}
        for axis in ("h", "w"):
            values |= {f"stride_{axis}": 1, f"dilation_{axis}": 1}
            values |= {f"kernel_{axis}": shape.kernel, f"pad_{axis}": shape.kernel // 2}
        values |= {name: array.data_ptr() for name, array in self._arrays.items()}
        self._values = values
        height, width = (shape.size, shape.size) if shape.kernel > 1 else (1, shape.size)
        inner = (shape.channels, 1) if shape.last else (1, pixels)
        outer = (shape.outputs, 1) if shape.last else (1, pixels)
        self._geometry = native.GeometryStruct(
            *(1, height, width, height, width),
            *(0, width * inner[0], *inner),
            *(0, width * outer[0], *outer),
        )

    def best(self, library: native.Library, calls: int) -> float:
        """Seconds of the fastest of some calls.

        The wall's clock serves: the fastest call is one in which nothing else ran, and a clock of
        processor time may move in steps that are longer than a call.
        """
        assert library.run is not None
        # int16 sums would overflow at 8 bits, so such a unit would multiply pairs
        pair = int(not library.wide and self._shape.bits > 4)
        layer = native.LayerStruct(*(self._values | {"pair": pair}).values())
        least = math.inf
        for _ in range(calls):
            start = time.perf_counter()
            error = library.run(
                ctypes.addressof(layer),
                ctypes.addressof(self._geometry),
                *(self._x.data_ptr(), self._y.data_ptr(), 0, 1, 0, None),
            )
            least = min(least, time.perf_counter() - start)
            if error:
                raise OSError(f"{library.status.isa} kernels failed")
        return least


def measure(libraries: Mapping[str, native.Library]) -> dict[str, float]:
    """Times units on small layers, on one thread.

    Args:
        libraries: units by name.

    Returns:
        Seconds by unit: the geometric mean over :data:`SHAPES`.

    Raises:
        OSError: a unit could not run.
    """
    jobs = [_Job(shape) for shape in SHAPES]
    times = {(name, job): math.inf for name in libraries for job in jobs}
    for _ in range(_PASSES):
        for name, job in times:
            times[name, job] = min(times[name, job], job.best(libraries[name], _CALLS))
    return {
        name: math.exp(sum(math.log(max(times[name, job], 1e-9)) for job in jobs) / len(jobs))
        for name in libraries
    }


def pick(seconds: Mapping[str, float]) -> str:
    """The first unit of the list that is as good as the fastest."""
    limit = min(seconds.values()) * _MARGIN
    return next(name for name, spent in seconds.items() if spent <= limit)


def cache_file(library: Path, names: Sequence[str]) -> Path:
    """Where the answer for this processor and this library is kept.

    Raises:
        OSError: the library cannot be read.
    """
    base = os.environ.get(CACHE)
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(base).expanduser() if base else Path(root).expanduser() / "quantarena"
    digest = hashlib.sha256(library.read_bytes())
    digest.update("\n".join((*_processor(), *names)).encode())
    return folder / f"kernels-{digest.hexdigest()[:24]}.json"


def _processor() -> list[str]:
    """What tells one kind of processor from another."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "CPU part")
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        first = text.split("\n\n")[0].splitlines()
        return [line for line in first if line.split(":")[0].strip() in wanted]
    return [platform.machine(), platform.processor()]


def _read(file: Path, names: Sequence[str]) -> str | None:
    """The unit that the cache names; None where there is no answer that could be true."""
    try:
        with file.open("rb") as opened:
            document = parse_json(opened.read(_LONGEST).decode("utf-8"))
    except (OSError, ValueError):
        return None
    isa = document.get("isa") if isinstance(document, dict) else None
    return isa if isinstance(isa, str) and isa in names else None


def _write(file: Path, isa: str, seconds: Mapping[str, float], names: Sequence[str]) -> str:
    """Keeps an answer unless another process has just kept one; returns the one that is kept."""
    staged = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.stem)
        staged = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            json.dump({"format": 1, "isa": isa, "seconds": dict(seconds)}, opened)
        try:
            os.link(staged, file)
        except FileExistsError:
            if (kept := _read(file, names)) is not None:
                return kept
            staged.replace(file)  # what was there is no answer
    except OSError:
        return isa  # a cache that cannot be written is no reason to fail
    finally:
        if staged is not None:
            staged.unlink(missing_ok=True)
    return isa


def choose(library: Path, names: Sequence[str]) -> tuple[str, str]:
    """The unit to use, and how it was found.

    Args:
        library: the native library.
        names: its units that this machine can run, the expected order of their speed first.

    Returns:
        A name, and a phrase for ``NativeStatus.chosen``.
    """
    rivals = [name for name in names if name != "scalar"]
    if len(rivals) < 2:
        return names[0], ONLY
    try:
        file = cache_file(library, names)
    except OSError as error:
        return names[0], f"the first of the list: {error}"
    if (kept := _read(file, names)) is not None:
        return kept, MEASURED
    try:
        seconds = measure({name: native.load(name) for name in rivals})
    except OSError as error:
        return names[0], f"the first of the list: {error}"
    return _write(file, pick(seconds), seconds, names), MEASURED
