"""Fuzzes the native kernels under the address and undefined-behaviour sanitizers.

``python -m quantarena.methods.core.kernels.sanitize [--trials N] [--thread]`` builds the library's
sources together with ``csrc/fuzz/*.cpp`` into one program and runs it.  There the AVX-VNNI unit is
built with an emulated dot product, so that its code runs on machines that lack the instruction.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quantarena.methods.core.kernels.build import find_compiler, units


def build(folder: Path, sanitizers: str) -> Path:
    """Compiles the fuzz program.

    Args:
        folder: folder of the program.
        sanitizers: value of ``-fsanitize``.

    Returns:
        Path of the program.

    Raises:
        RuntimeError: there is no compiler, or it failed; the message holds its output.
    """
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError("no C++ compiler found")
    sources = Path(__file__).resolve().parent / "csrc"
    flags = ["-std=c++17", "-O1", "-g", "-pthread", "-ffp-contract=off", f"-fsanitize={sanitizers}"]
    flags += ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    parts = units(platform.machine())
    macros = tuple(f"-D{unit.macro}" for unit in parts if unit.macro)
    flags += [*macros, "-DQA_EMULATE_VNNI", f"-I{sources}"]
    named = [(unit.source, unit.flags) for unit in parts]
    named += [("library.cpp", ()), ("fuzz/fuzz.cpp", ()), ("fuzz/attention_fuzz.cpp", ())]

    def run(arguments: list[str], output: Path) -> str:
        command = [*compiler, *flags, *arguments, "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"building {output.name} failed:\n{done.stderr}")
        return str(output)

    def compile_one(part: tuple[str, tuple[str, ...]]) -> str:
        source, extra = part
        return run([*extra, "-c", str(sources / source)], folder / f"{Path(source).name}.o")

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_one, named))
    program = folder / "fuzz"
    run(objects, program)
    return program


def fuzz(trials: int, sanitizers: str = "address,undefined", first: int = 0) -> tuple[int, str]:
    """Builds and runs the fuzz program.

    Returns:
        Its exit code (0 if every trial was exact and nothing was reported) and its output.
    """
    with tempfile.TemporaryDirectory() as name:
        program = build(Path(name), sanitizers)
        done = subprocess.run(
            [str(program), str(first), str(trials)], capture_output=True, text=True, check=False
        )
    return done.returncode, done.stdout + done.stderr


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="quantarena.methods.core.kernels.sanitize")
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--thread", action="store_true", help="thread sanitizer instead")
    options = parser.parse_args(arguments)
    code, output = fuzz(
        options.trials, "thread" if options.thread else "address,undefined", options.first
    )
    sys.stdout.write(output)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
