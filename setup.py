"""Builds the native kernels during installation; all other metadata is in pyproject.toml.

A machine without a C++ compiler still installs: the package then runs its torch reference and
``quantarena.methods.core.kernels.status()`` says why.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "quantarena.methods.core.kernels"
FOLDER = ROOT / "methods" / "core" / "kernels"


def build_library(target: Path) -> str:
    """Loads the builder by path (the package itself needs torch) and builds into ``target``."""
    spec = importlib.util.spec_from_file_location("_quantarena_build", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return str(module.build_into(target, FOLDER / "csrc"))


class BuildWithLibrary(build_py):
    """``build_py`` that also compiles the shared library, in place for an editable install."""

    def run(self) -> None:
        """Copies the Python files, then compiles."""
        super().run()
        in_place = bool(self.editable_mode)
        target = FOLDER if in_place else Path(self.build_lib, *PACKAGE.split("."))
        self.announce(build_library(target), level=3)

    def find_data_files(self, package: str, src_dir: str) -> list[str]:
        """Leaves out a library that an editable install left in the source tree."""
        files: list[str] = super().find_data_files(package, src_dir)
        return [name for name in files if not Path(name).name.startswith("libquantarena.")]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Files that belong to the installation."""
        outputs: list[str] = super().get_outputs(include_bytecode)
        built = Path(self.build_lib, *PACKAGE.split("."))
        return outputs + [str(path) for path in built.glob("libquantarena.*")]


class BinaryDistribution(Distribution):
    """Marks the wheel as specific to the platform."""

    def has_ext_modules(self) -> bool:
        """True: the wheel holds compiled code."""
        return True


setup(cmdclass={"build_py": BuildWithLibrary}, distclass=BinaryDistribution)
