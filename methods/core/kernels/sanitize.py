"""Fuzzes the native kernels under a sanitizer of the compiler.

``python -m quantarena.methods.core.kernels.sanitize [--layers N] [--sanitizer NAME]`` builds the
library's sources together with ``csrc/fuzz/*.cpp`` into one program and runs it until every unit
has computed N random layers.  There the AVX-VNNI unit is built with an emulated dot product, and
the AMX unit with emulated tiles, so that their code runs on machines that lack the instructions
(the AMX unit on those with AVX-512 VNNI, which it falls back on).
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
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
    flags += [*macros, "-DQA_EMULATE_VNNI", "-DQA_EMULATE_AMX", "-DQA_SHARE_ALL", f"-I{sources}"]
    named = [(unit.source, unit.flags) for unit in parts]
    named += [("library.cpp", ()), ("fuzz/fuzz.cpp", ()), ("fuzz/attention_fuzz.cpp", ())]
    named += [("fuzz/grouped_fuzz.cpp", ()), ("fuzz/step_fuzz.cpp", ()), ("step/step.cpp", ())]

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


def fuzz(
    layers: int, sanitizers: str = "address,undefined", first: int = 0, callers: int = 2
) -> tuple[int, str]:
    """Builds and runs the fuzz program.

    Args:
        layers: random layers that each unit has to compute.
        sanitizers: value of ``-fsanitize``.
        first: first seed.
        callers: threads that call kernels at the same time, each of which starts threads of its
            own.

    Returns:
        Its exit code (0 if every layer was exact and nothing was reported) and its output: a line
        with the counts of each unit.
    """
    with tempfile.TemporaryDirectory() as name:
        program = build(Path(name), sanitizers)
        command = [str(program), str(first), str(layers), str(callers)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="quantarena.methods.core.kernels.sanitize")
    parser.add_argument("--layers", type=int, default=300, help="random layers for each unit")
    parser.add_argument(
        "--sanitizer", default="address,undefined", help="address, undefined, thread"
    )
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--callers", type=int, default=2, help="threads that call at the same time")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    code, output = fuzz(options.layers, options.sanitizer, options.first, options.callers)
    seconds = time.monotonic() - started
    sys.stdout.write(f"{output}-fsanitize={options.sanitizer}: {seconds:.0f} s with the build\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
