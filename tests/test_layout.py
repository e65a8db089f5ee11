"""The house rules that no tool knows: which part may import which, and what is listed where."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from quantarena.methods.builtin import builtins

ROOT = Path(__file__).parent.parent
FOLDERS = ("bench", "methods", "leaderboard")
LONGEST = 400


def sources():
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.name.startswith(".")
    ]


def module_name(path):
    """``bench/store.py`` as ``quantarena.bench.store``; ``bench/_root`` is the package itself."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[:2] == ["bench", "_root"]:
        parts = parts[2:]
    if parts and parts[-1] == "__init__":
        parts.pop()
    return ".".join(["quantarena", *parts])


def imports(path):
    """Every module that a file names in an import, lazy ones included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path):
    return {name for name in imports(path) if name.split(".")[0] == "quantarena"}


def inside(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def adapters():
    return {method.module.rpartition(".")[2] for method in builtins().values()}


def forbidden(path):
    """Imports of a file that point against the arrows."""
    module, names = module_name(path), ours(path)
    allowed: tuple[str, ...]
    if inside(module, "quantarena.methods.core"):
        allowed = ("quantarena.methods.core",)
    elif inside(module, "quantarena.methods"):
        allowed = ("quantarena.methods",)
    elif inside(module, "quantarena.bench"):
        # The command line draws the page; it loads the leaderboard by name, when it needs it.
        allowed = ("quantarena.bench", "quantarena.methods")
    elif inside(module, "quantarena.leaderboard"):
        allowed = (
            "quantarena.leaderboard",
            "quantarena.bench.spec",
            "quantarena.bench.schema",
            "quantarena.bench.scores",
            "quantarena.bench.store",
            "quantarena.bench.files",
        )
    else:
        allowed = ("quantarena",)
    whole = {"quantarena", "quantarena.__version__", "quantarena.bench", "quantarena.methods"}
    return sorted(n for n in names - whole if not inside(n, *allowed))


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_follow_the_arrows(path):
    assert forbidden(path) == []


@pytest.mark.parametrize("name", sorted(adapters()))
def test_methods_do_not_import_each_other(name):
    others = adapters() - {name}
    found = ours(ROOT / "methods" / f"{name}.py")
    assert not [n for n in found if inside(n, *(f"quantarena.methods.{o}" for o in others))]


@pytest.mark.parametrize("path", [p for p in sources() if "methods" in p.parts], ids=module_name)
def test_only_the_command_line_of_bench_uses_methods(path):
    assert not [n for n in ours(path) if inside(n, "quantarena.bench", "quantarena.leaderboard")]


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_bare_names_are_never_imported(path):
    assert not [n for n in imports(path) if n.split(".")[0] in FOLDERS]


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_modules_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_packages_lists_every_folder():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = config["tool"]["setuptools"]["packages"]
    found = {
        module_name(path)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
        if "zoo" not in path.parts
    }
    assert sorted(listed) == sorted(found)


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for path in sources()}
    assert [f for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


def test_tests_are_no_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_leaderboard_needs_no_torch():
    modules = [
        module_name(path) for path in sources() if "leaderboard" in path.relative_to(ROOT).parts[0]
    ]
    lines = "".join(f"import {name}\n" for name in modules)
    assert run(f"import sys\n{lines}print('torch' in sys.modules)") == "False"


def test_the_command_line_starts_without_torch_ray_and_pandas():
    heavy = "{'torch', 'ray', 'pandas', 'diffusers'}"
    code = f"import sys\nimport quantarena.bench.cli\nprint(sorted({heavy} & set(sys.modules)))"
    assert run(code) == "[]"


def test_bare_names_are_in_nobodys_modules():
    code = (
        "import sys\nimport quantarena.bench.cli, quantarena.methods.registry\n"
        f"print(sorted(set({FOLDERS!r}) & set(sys.modules)))"
    )
    assert run(code) == "[]"
    assert not set(FOLDERS) & set(sys.modules)
