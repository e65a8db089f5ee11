"""Loads the compiled library with ctypes and describes what this machine can run.

The environment variable ``QUANTARENA_KERNELS`` picks an instruction set by name (``scalar``,
``avx2``, ...) or ``reference`` for the torch oracle; it is read once, at the first use. Without it
a measurement decides (see ``choice``).
"""

import ctypes
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from quantarena.methods.core.errors import UserError
from quantarena.methods.core.kernels.build import LIBRARY_NAME, REASON_NAME

ABI = 11
ACCUMULATE = 1
INTEGER = 2
NO_MEMORY = 1
NOT_FINITE = 3
BY_CALL, BY_ROW, FOUND, FOUND_SYMMETRIC = range(4)
"""``QaRanges`` in ``csrc/quantarena.h``."""
WIDE = frozenset({"scalar", "avxvnni", "avx512vnni", "avx512wide", "amx", "neon"})
"""Instruction sets whose byte kernels accumulate in int32 without intermediate rounding."""

PAIRS = frozenset({"scalar", "avx2", "torch"})
"""Instruction sets that multiply 16-bit pairs; the others have byte products alone."""

_int = ctypes.c_int32
_ptr = ctypes.c_void_p


_LAYER_INTS = (
    "weight_bits act_max pair groups out_channels in_channels in_padded units panels "
    "kernel_h kernel_w stride_h stride_w pad_h pad_w dilation_h dilation_w table_size sum_groups "
    "parts"
)
_LAYER_POINTERS = (
    "codes chunk_start chunk_units weight_scale weight_sum weight_zero bias in_mult "
    "act_scale act_zero part source"
)
_GEOMETRY_INTS = (
    "batch height width out_height out_width x_batch x_row x_pixel x_channel "
    "y_batch y_row y_pixel y_channel"
)


def _fields(names: str, kind: Any) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split(" ")]


class LayerStruct(ctypes.Structure):
    """Mirror of ``QaLayer`` in ``csrc/quantarena.h``."""

    _fields_ = [*_fields(_LAYER_INTS, _int), *_fields(_LAYER_POINTERS, _ptr)]


class GeometryStruct(ctypes.Structure):
    """Mirror of ``QaGeometry`` in ``csrc/quantarena.h``."""

    _fields_ = _fields(_GEOMETRY_INTS, ctypes.c_int64)


class RowScalesStruct(ctypes.Structure):
    """Mirror of ``QaRowScales`` in ``csrc/quantarena.h``."""

    _fields_ = _fields("scale zero", _ptr)


class GroupsStruct(ctypes.Structure):
    """Mirror of ``QaGroups`` in ``csrc/quantarena.h``."""

    _fields_ = [
        *_fields("count ranges rank table_size", _int),
        *_fields("edge order act_scale act_zero weight_scale down up", _ptr),
    ]


class GroupedLayerStruct(ctypes.Structure):
    """Mirror of ``QaGroupedLayer`` in ``csrc/step/step.h``."""

    _fields_ = _fields("layer groups", _ptr)


class NormStruct(ctypes.Structure):
    """Mirror of ``QaNorm`` in ``csrc/quantarena.h``."""

    _fields_ = [
        *_fields("batch channels pixels groups", ctypes.c_int64),
        *_fields("last activation", _int),
        ("eps", ctypes.c_float),
        *_fields("weight bias", _ptr),
    ]


class RowsStruct(ctypes.Structure):
    """Mirror of ``QaRows`` in ``csrc/quantarena.h``."""

    _fields_ = [*_fields("rows columns x_row gate_row", ctypes.c_int64), ("activation", _int)]


class RotationStruct(ctypes.Structure):
    """Mirror of ``QaRotation`` in ``csrc/quantarena.h``."""

    _fields_ = [*_fields("rows order size", ctypes.c_int64), *_fields("factor table", _ptr)]


RunFunction = ctypes.CFUNCTYPE(_int, _ptr, _ptr, _ptr, _ptr, _int, _int, _int, _ptr)
PeakFunction = ctypes.CFUNCTYPE(_int, _int, _int, ctypes.c_int64)
NormFunction = ctypes.CFUNCTYPE(_int, ctypes.POINTER(NormStruct), _ptr, _ptr, _int)
ExtremesFunction = ctypes.CFUNCTYPE(_int, _ptr, _ptr, _ptr, ctypes.c_int64, ctypes.c_int64, _int)
ActivationFunction = ctypes.CFUNCTYPE(_int, ctypes.POINTER(RowsStruct), _ptr, _ptr, _ptr, _int)
AttentionFunction = ctypes.CFUNCTYPE(_int, _ptr, _int)
GroupsFunction = ctypes.CFUNCTYPE(_int, _ptr, _ptr, _ptr, _ptr, _ptr, _int, _int, _int, _ptr)
RotationFunction = ctypes.CFUNCTYPE(_int, ctypes.POINTER(RotationStruct), _ptr, _ptr, _int)


@dataclass(frozen=True, slots=True)
class NativeStatus:
    """The backend that executes packed layers in this process."""

    backend: Literal["packed", "reference"]
    isa: str
    """Instruction set of the native unit, or ``torch`` for the reference."""
    reason: str
    """Why the reference runs; empty where the native kernels run."""
    available: tuple[str, ...]
    """Instruction sets compiled in and usable on this machine, the expected best first."""
    threads: str
    """OpenMP runtime whose threads the kernels share, or why there is only one."""
    chosen: str = ""
    """How the instruction set was chosen; empty where a caller named it."""
    absent: tuple[str, ...] = ()
    """Instruction sets compiled in but not usable here, each with the reason."""


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded library and the chosen entry point; ``run`` is None for the reference."""

    status: NativeStatus
    run: "ctypes._CFunctionType | None"
    peak: "ctypes._CFunctionType | None" = None
    """``peak(pair, units, repeats)``: the micro-kernel alone on cache-resident data."""
    norm: "ctypes._CFunctionType | None" = None
    """``norm(struct, x, y, threads)``: group normalization, then an activation."""
    activation: "ctypes._CFunctionType | None" = None
    """``activation(struct, x, gate, y, threads)``; the gate may be null."""
    extremes: "ctypes._CFunctionType | None" = None
    """``extremes(x, low, high, count, width, threads)``: extremes of consecutive slices."""
    attention: "ctypes._CFunctionType | None" = None
    """``attention(struct, threads)``: integer attention products, see ``attention``."""
    rotate: "ctypes._CFunctionType | None" = None
    """``rotate(struct, x, y, threads)``: channels multiplied and rotated."""
    run_groups: "ctypes._CFunctionType | None" = None
    """As ``run``, for a layer whose K axis has groups, a ``GroupsStruct`` after the layer's."""

    @property
    def wide(self) -> bool:
        """Whether byte products accumulate in int32, so that no overflow proof is needed."""
        return self.status.isa in WIDE

    @property
    def pairs(self) -> bool:
        """Whether there are 16-bit products; the reference takes codes in any form."""
        return self.status.isa in PAIRS


def _share_threads(library: ctypes.CDLL) -> str:
    """Hands the library the GOMP_parallel of the OpenMP runtime that torch has already loaded.

    Wheels rename that runtime, so it is looked up in the process map and not linked. Thus torch and
    the kernels share one pool of threads.
    """
    torch.get_num_threads()
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "one thread: no /proc to find torch's OpenMP runtime in"
    paths = {line.split(maxsplit=5)[5] for line in maps if len(line.split(maxsplit=5)) == 6}
    for path in sorted(paths):
        if not any(tag in Path(path).name for tag in ("gomp", "libomp", "iomp")):
            continue
        try:
            function = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        library.qa_set_parallel(ctypes.cast(function, _ptr))
        return Path(path).name
    return "one thread: torch's OpenMP runtime was not found"


def load(choice: str | None = None) -> Library:
    """Loads the library for one instruction set, without a measurement.

    Args:
        choice: ``reference`` or the name of an instruction set; None for the first of the list.

    Returns:
        The library, or the reference with the reason when there is nothing to load.

    Raises:
        ValueError: the named instruction set is not compiled in or not usable here.
    """
    folder = Path(__file__).resolve().parent
    path = folder / LIBRARY_NAME
    if not path.exists():
        note = folder / REASON_NAME
        why = note.read_text(encoding="utf-8").strip() if note.exists() else "was never built"
        reason = f"no native library: {why}"
        if choice not in (None, "reference"):
            raise ValueError(f"kernels {choice!r} asked for, but there is {reason}")
        return Library(NativeStatus("reference", "torch", reason, (), "torch"), None)
    try:
        library = ctypes.CDLL(str(path))
        library.qa_isa_name.restype = library.qa_isa_absent.restype = ctypes.c_char_p
        library.qa_entry.restype = _ptr
        library.qa_set_parallel.argtypes = [_ptr]
        if library.qa_abi() != ABI:
            raise OSError(f"{LIBRARY_NAME} has ABI {library.qa_abi()}, expected {ABI}: reinstall")
    except (OSError, AttributeError) as error:
        if choice not in (None, "reference"):
            raise ValueError(f"kernels {choice!r} asked for, but {error}") from error
        return Library(NativeStatus("reference", "torch", str(error), (), "torch"), None)
    names: list[str] = []
    while (name := library.qa_isa_name(len(names))) is not None:
        names.append(name.decode())
    if choice == "reference":
        reason = "asked for by QUANTARENA_KERNELS"
        return Library(NativeStatus("reference", "torch", reason, tuple(names), "torch"), None)
    if choice is not None and choice not in names:
        raise ValueError(f"kernels {choice!r} not usable here; there are {', '.join(names)}")
    isa = choice or names[0]
    kinds = (
        RunFunction,
        PeakFunction,
        NormFunction,
        ActivationFunction,
        ExtremesFunction,
        AttentionFunction,
        RotationFunction,
        GroupsFunction,
    )
    entries = [kind(library.qa_entry(isa.encode(), which)) for which, kind in enumerate(kinds)]
    absent: list[str] = []
    while (reason := library.qa_isa_absent(len(absent))) is not None:
        absent.append(reason.decode())
    status = NativeStatus(
        "packed", isa, "", tuple(names), _share_threads(library), absent=tuple(absent)
    )
    return Library(status, *entries)


@cache
def library() -> Library:
    """The library of this process, chosen once (see the module docstring).

    Raises:
        UserError: the environment names an instruction set that is not usable here.
    """
    choice = os.environ.get("QUANTARENA_KERNELS") or None
    chosen = "named by QUANTARENA_KERNELS"
    try:
        found = load(choice)
    except ValueError as error:
        raise UserError(f"QUANTARENA_KERNELS={choice}: {error}") from None
    if choice is None and found.run is not None:
        # which loads units by this module
        from quantarena.methods.core.kernels.choice import choose

        path = Path(__file__).resolve().parent / LIBRARY_NAME
        isa, chosen = choose(path, found.status.available)
        found = load(isa)
    if found.run is None:
        return found
    return replace(found, status=replace(found.status, chosen=chosen))


def status() -> NativeStatus:
    """The backend that executes packed layers in this process, and why."""
    return library().status
