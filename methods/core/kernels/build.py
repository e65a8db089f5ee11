"""Compiles the native library with the C++ compiler of the machine.

Used by ``setup.py`` at install time and by ``python -m quantarena.methods.core.kernels.build``.
The module imports nothing but the standard library, so that a build environment without torch can
load it by path.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

__sources__ = (
    "csrc/*",
    "csrc/units/*",
    "csrc/wide/*",
    "csrc/grouped/*",
    "csrc/attention/*",
    "csrc/step/*",
)
"""Files beside this module that decide what the kernels compute: a number's key holds them."""
LIBRARY_NAME = "libquantarena.so"
REASON_NAME = "libquantarena.txt"
"""File beside the sources with the reason, one line, where no library could be built."""

_COMMON = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-pthread",
)


@dataclass(frozen=True, slots=True)
class Unit:
    """One translation unit: source file, target flags, and the macro that announces it."""

    source: str
    flags: tuple[str, ...]
    macro: str | None


_FAST = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
_MATHS = Unit("rounding.cpp", _FAST, None)
"""Loops that the compiler vectorizes by itself."""
_CHOOSERS = ("library.cpp", "step/step.cpp")
"""Sources that choose among the units that were compiled, by their macros."""


def units(machine: str) -> tuple[Unit, ...]:
    """Translation units for a machine name as reported by ``platform.machine()``."""
    return (_MATHS, *_isa_units(machine))


def _isa_units(machine: str) -> tuple[Unit, ...]:
    scalar = Unit("units/isa_scalar.cpp", (), None)
    step = Unit("step/step_scalar.cpp", (), None)
    if machine in ("x86_64", "AMD64"):
        avx2 = ("-mavx2", "-mfma")
        wide = ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx512vnni")
        return (
            scalar,
            step,
            Unit("step/step_avx2.cpp", ("-O3", *avx2), "QA_WITH_STEP_AVX2"),
            Unit("units/isa_avx2.cpp", avx2, "QA_WITH_AVX2"),
            Unit("units/isa_avxvnni.cpp", (*avx2, "-mavxvnni"), "QA_WITH_AVXVNNI"),
            Unit("units/isa_avx512vnni.cpp", (*avx2, *wide), "QA_WITH_AVX512VNNI"),
            Unit("units/isa_avx512wide.cpp", (*avx2, *wide), "QA_WITH_AVX512WIDE"),
            Unit("units/isa_amx.cpp", (*avx2, *wide, "-mamx-tile", "-mamx-int8"), "QA_WITH_AMX"),
        )
    if machine in ("aarch64", "arm64"):
        neon = Unit("units/isa_neon.cpp", ("-march=armv8.2-a+dotprod",), "QA_WITH_NEON")
        return (scalar, step, neon)
    return (scalar, step)


def find_compiler() -> list[str] | None:
    """``$CXX`` (which may have arguments), else g++, clang++ or c++; None if there is none."""
    named = os.environ.get("CXX", "").split()
    if named:
        return named if shutil.which(named[0]) else None
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    return None


def _run(command: list[str]) -> str | None:
    """Runs a command; returns its error output on failure, None on success."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
    return next((line for line in lines if "error" in line), lines[0])


def _is_wanted(unit: Unit, wanted: Collection[str] | None) -> bool:
    return unit.macro is None or wanted is None or unit.macro in wanted


def compile_library(
    sources: Path, target: Path, wanted: Collection[str] | None = None
) -> tuple[str, ...]:
    """Compiles and links every unit that the compiler can handle.

    An instruction-set unit that an old compiler rejects is left out; the portable unit must build.

    Args:
        sources: the ``csrc`` folder.
        target: path of the shared library to write.
        wanted: macros of the units to build besides the portable one; by default all.

    Returns:
        Macros of the instruction-set units that were left out.

    Raises:
        RuntimeError: no compiler, or the portable unit or the link failed.
    """
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError("no C++ compiler found (looked for $CXX, g++, clang++, c++)")
    extra = [] if "clang" in compiler[0] else ["-fno-tree-reassoc"]
    extra += os.environ.get("QUANTARENA_CXXFLAGS", "").split()
    with tempfile.TemporaryDirectory() as folder:

        def compile_one(unit: Unit) -> tuple[Unit, str, str | None]:
            output = str(Path(folder) / (Path(unit.source).name + ".o"))
            source = str(sources / unit.source)
            command = [*compiler, *_COMMON, *extra, *unit.flags, f"-I{sources}", "-c", source]
            command += ["-o", output]
            return unit, output, _run(command)

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            chosen = [u for u in units(platform.machine()) if _is_wanted(u, wanted)]
            results = list(pool.map(compile_one, chosen))
        objects, macros, missing = [], [], []
        for unit, output, error in results:
            if error is None:
                objects.append(output)
                macros += [f"-D{unit.macro}"] if unit.macro else []
            elif unit.macro is None:
                raise RuntimeError(f"compiling {unit.source} failed: {error}")
            else:
                missing.append(unit.macro)
        error = None
        for source in _CHOOSERS:
            if error is None:
                _, output, error = compile_one(Unit(source, tuple(macros), None))
                objects.append(output)
        if error is None:
            linked = str(Path(folder) / target.name)
            flags = ["-shared", "-pthread", *os.environ.get("QUANTARENA_CXXFLAGS", "").split()]
            error = _run([*compiler, *flags, *objects, "-o", linked])
        if error is not None:
            raise RuntimeError(f"linking {target.name} failed: {error}")
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_suffix(f".{os.getpid()}.tmp")
        shutil.copyfile(linked, staged)
        staged.replace(target)  # a running process keeps the old file
    return tuple(missing)


def build_into(package: Path, sources: Path | None = None) -> str:
    """Builds the library into the folder of the kernels package; a failed build does not raise.

    Args:
        package: folder of ``quantarena.methods.core.kernels``, to which the library is written, or
            a file with the reason where it cannot be built.
        sources: ``csrc`` folder, by default the one inside ``package``.

    Returns:
        The outcome in one line.
    """
    library, reason = package / LIBRARY_NAME, package / REASON_NAME
    try:
        missing = compile_library(sources or package / "csrc", library)
    except RuntimeError as error:
        library.unlink(missing_ok=True)
        package.mkdir(parents=True, exist_ok=True)
        reason.write_text(f"{error}\n", encoding="utf-8")
        return f"native kernels not built: {error}"
    reason.unlink(missing_ok=True)
    note = f" without {', '.join(missing)}" if missing else ""
    return f"built {library}{note}"


if __name__ == "__main__":
    sys.stderr.write(build_into(Path(__file__).resolve().parent) + "\n")
