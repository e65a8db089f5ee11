import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantarena.methods.core.kernels import build, native, sanitize


def test_scalar_kernels_are_always_there():
    status = native.load().status
    assert status.available[-1:] == ("scalar",) or status.backend == "reference"


def test_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="'sse9'"):
        native.load("sse9")


@pytest.mark.parametrize("choice", ["reference", "scalar"])
def test_environment_picks_the_kernels(choice):
    code = "from quantarena.methods.core.kernels import status; print(status().isa)"
    environment = {**os.environ, "QUANTARENA_KERNELS": choice}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == {"reference": "torch"}.get(choice, choice)


def test_no_compiler_leaves_the_reason_instead_of_a_library(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/compiler")
    assert "no C++ compiler found" in build.build_into(
        tmp_path, Path(build.__file__).parent / "csrc"
    )
    assert not (tmp_path / build.LIBRARY_NAME).exists()
    assert "no C++ compiler found" in (tmp_path / build.REASON_NAME).read_text()


def test_failed_compilation_tells_the_error(tmp_path, monkeypatch):
    if build.find_compiler() is None:
        pytest.skip("needs a compiler")
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "csrc").mkdir()
    for unit in build.units("any"):  # those that must build
        source = tmp_path / "csrc" / unit.source
        source.parent.mkdir(exist_ok=True)
        source.write_text("this is not C++\n")
    outcome = build.build_into(tmp_path)
    assert re.search(r"compiling [\w/]+\.cpp failed: .*error", outcome)
    assert "\n" not in outcome


def test_missing_library_falls_back_to_the_reference(tmp_path, monkeypatch):
    (tmp_path / build.REASON_NAME).write_text("no C++ compiler found\n")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    status = native.load().status
    assert (status.backend, status.isa) == ("reference", "torch")
    assert "no C++ compiler found" in status.reason
    with pytest.raises(ValueError, match="'scalar' asked for"):
        native.load("scalar")


def test_damaged_library_falls_back_to_the_reference(tmp_path, monkeypatch):
    (tmp_path / build.LIBRARY_NAME).write_bytes(b"not a library")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    status = native.load().status
    assert status.backend == "reference"
    assert build.LIBRARY_NAME in status.reason


def sanitized(sanitizer, layers, callers=2):
    if build.find_compiler() is None:
        pytest.skip("needs a compiler")
    code, output = sanitize.fuzz(layers, sanitizer, callers=callers)
    print(f"\n-fsanitize={sanitizer}\n{output}")
    assert code == 0, output
    counts = [int(found) for found in re.findall(r"^\w+: (\d+) layers", output, re.MULTILINE)]
    assert len(counts) >= len(native.load().status.available)
    assert min(counts) >= layers


@pytest.mark.long
@pytest.mark.parametrize("sanitizer", ["address", "undefined"])
def test_fuzzing_under_the_sanitizers_is_clean(sanitizer):
    """``make fuzz`` runs thousands."""
    sanitized(sanitizer, 40)


@pytest.mark.long
def test_threads_that_call_at_once_race_for_nothing():
    sanitized("thread", 20, callers=3)


@pytest.mark.slow
def test_clang_builds_the_library_too(tmp_path, monkeypatch):
    if shutil.which("clang++") is None:
        pytest.skip("needs clang")
    monkeypatch.setenv("CXX", "clang++")
    build.compile_library(Path(build.__file__).parent / "csrc", tmp_path / build.LIBRARY_NAME)
