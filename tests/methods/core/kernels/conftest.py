import subprocess
import sys
from pathlib import Path

import pytest

from quantarena.methods.core.kernels import build, native

EMULATED = "-DQA_EMULATE_AMX"


@pytest.fixture(scope="session")
def emulated_folder(tmp_path_factory):
    """A library of the portable unit and of the AMX unit on tiles made of plain loops."""
    if build.find_compiler() is None or not any(
        unit.macro == "QA_WITH_AMX" for unit in build.units("x86_64")
    ):
        pytest.skip("needs a compiler")
    if "avx512wide" not in native.load().status.available:
        pytest.skip("emulated tiles need AVX-512 VNNI around them")
    folder = tmp_path_factory.mktemp("amx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTARENA_CXXFLAGS", EMULATED)
        sources = Path(build.__file__).parent / "csrc"
        missing = build.compile_library(sources, folder / build.LIBRARY_NAME, {"QA_WITH_AMX"})
    if missing:
        pytest.skip("the compiler does not know AMX")
    return folder


@pytest.fixture
def emulated(emulated_folder, monkeypatch):
    """The AMX unit on emulated tiles."""
    with monkeypatch.context() as patch:
        patch.setattr(native, "__file__", str(emulated_folder / "native.py"))
        return native.load("amx")


@pytest.fixture
def run_python(monkeypatch):
    """Runs code in a process of its own and returns what it prints."""

    def run(code, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return run
