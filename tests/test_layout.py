"""The house rules that no tool knows: which room may import which, and how large anything gets."""

import ast
import os
import statistics
import subprocess
import sys
import tomllib
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from quantarena.methods.builtin import builtins

ROOT = Path(__file__).parent.parent
FOLDERS = ("bench", "methods", "leaderboard")
LONGEST, MEDIAN = 400, 120
MOST_FILES = 16
ROOMS = (
    "methods/core",
    "methods/core/kernels",
    "methods/core/kernels/groups",
    "methods/core/quantizers",
    "methods/core/trace",
    "methods/core/record",
    "methods/core/model/options",
    "methods/core/model",
    "methods/core/packed/nodes",
    "methods/core/packed/lowering",
    "methods/core/packed",
    "methods/core/packed/step",
    "methods/core/cuda",
    "methods/techniques",
    "methods/techniques/ranges",
    "methods/techniques/points",
    "methods/techniques/calibrate",
    "methods/techniques/widths",
    "methods/techniques/scaling",
    "methods/techniques/learn",
    "methods/techniques/distill",
    "methods/techniques/correct",
    "methods/techniques/personalise",
    "methods",
    "methods/rivals",
    "methods/runtimes",
    "methods/testing",
    "methods/timing",
    "bench",
    "bench/process_state",
    "bench/storage",
    "bench/adapters",
    "bench/workloads/inputs",
    "bench/workloads",
    "bench/workloads/outliers",
    "bench/devices",
    "bench/metrics",
    "bench/metrics/fidelity",
    "bench/metrics/quality",
    "bench/metrics/text",
    "bench/metrics/derive",
    "bench/metrics/phenomena",
    "bench/plan",
    "bench/stages",
    "bench/run",
    "bench/cluster",
    "bench/share",
    "bench/report",
    "bench/budget",
    "bench/ship",
    "bench/gate",
    "bench/training/tasks",
    "bench/training/export",
    "bench/training",
    "bench/personalise",
    "bench/cli/output",
    "bench/cli",
    "leaderboard",
    "leaderboard/inference",
    "leaderboard/ranking",
    "leaderboard/ranking/engines",
    "leaderboard/ranking/simulation",
    "leaderboard/page",
    "leaderboard/arena/engines",
    "leaderboard/arena",
    "leaderboard/arena/web",
    "bench/_root",
)
"""Every folder with modules, lowest first: a module imports from its own folder and from earlier
ones. ``bench/_root`` is the package ``quantarena`` itself."""

CLOSED = {
    "bench": "methods/techniques",
    "": "methods/timing",
}
"""Rooms, by the start of the folders that must not import them though they come later."""

LEADERBOARD_NEEDS = (
    *("spec", "schema", "scores", "store", "files"),
    *("budget/curves", "metrics/names", "report/power", "share/provenance"),
)
"""Modules of ``bench`` that the leaderboard may import: plain data and formulas, no torch."""


@cache
def sources():
    return tuple(
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.name.startswith(".")
    )


def module_name(path):
    """``bench/store.py`` as ``quantarena.bench.store``; ``bench/_root`` is the package itself."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[:2] == ["bench", "_root"]:
        parts = parts[2:]
    if parts and parts[-1] == "__init__":
        parts.pop()
    return ".".join(["quantarena", *parts])


@cache
def modules():
    return {module_name(path): path for path in sources()}


@cache
def imports(path):
    """Every name that a file's imports could mean a module by, lazy ones included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported(path):
    """Our modules that a file imports, packages that lead to them left out."""
    whole = {name for name in imports(path) if name in modules()}
    return {
        name
        for name in whole
        if modules()[name].name != "__init__.py"
        or not any(other.startswith(f"{name}.") for other in whole)
    } - {"quantarena"}


def folder(path):
    return path.parent.relative_to(ROOT).as_posix()


@cache
def arrows():
    """(importing path, imported path) of all modules in different folders."""
    pairs = [(path, modules()[name]) for path in sources() for name in sorted(imported(path))]
    return tuple((one, other) for one, other in pairs if folder(one) != folder(other))


def shown(pairs):
    return [f"{module_name(one)} imports {module_name(other)}" for one, other in pairs]


def inside(name, parent):
    return name == parent or name.startswith(f"{parent}/") or not parent


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def adapters():
    """The files of methods and rivals below ``methods``, without their suffix."""
    modules = {method.module.removeprefix("quantarena.methods.") for method in builtins().values()}
    return sorted(module.replace(".", "/") for module in modules)


# ---- arrows ----------------------------------------------------------------------------------


def test_every_folder_is_one_of_the_rooms():
    folders = {folder(path) for path in sources()}
    assert folders - set(ROOMS) == set()
    assert [room for room in ROOMS if not (ROOT / room).is_dir()] == []
    assert len(set(ROOMS)) == len(ROOMS)


def test_imports_point_to_earlier_rooms():
    place = ROOMS.index
    assert shown((a, b) for a, b in arrows() if place(folder(a)) < place(folder(b))) == []


def test_closed_rooms_are_not_entered():
    entered = [
        (a, b)
        for start, room in CLOSED.items()
        for a, b in arrows()
        if inside(folder(a), start) and inside(folder(b), room)
    ]
    assert shown(entered) == []


def test_the_leaderboard_imports_plain_data_of_the_bench():
    allowed = {ROOT / "bench" / f"{name}.py" for name in LEADERBOARD_NEEDS}
    strange = [
        (a, b)
        for a, b in arrows()
        if inside(folder(a), "leaderboard")
        and not inside(folder(b), "leaderboard")
        and b not in allowed
    ]
    assert shown(strange) == []


def test_folders_form_no_circle():
    below = defaultdict(set)
    for one, other in arrows():
        below[folder(one)].add(folder(other))
    while below:
        leaves = {name for names in below.values() for name in names} - below.keys()
        free = [name for name, names in below.items() if names <= leaves]
        assert free, f"these folders import each other: {sorted(below)}"
        for name in free:
            del below[name]
        for names in below.values():
            names -= leaves | set(free)


@pytest.mark.parametrize("name", adapters())
def test_methods_do_not_import_each_other(name):
    names = (other.replace("/", ".") for other in adapters() if other != name)
    others = {f"quantarena.methods.{other}" for other in names}
    assert imports(ROOT / "methods" / f"{name}.py") & others == set()


def test_bare_names_are_never_imported():
    bare = {
        module_name(path): names
        for path in sources()
        if (names := [name for name in imports(path) if name.split(".")[0] in FOLDERS])
    }
    assert bare == {}


# ---- sizes -----------------------------------------------------------------------------------


def test_files_are_short():
    others = [p for where in ("tests", "docs") for p in sorted((ROOT / where).rglob("*.py"))]
    long = {
        path.relative_to(ROOT).as_posix(): lines(path)
        for path in (*sources(), *others, ROOT / "setup.py")
        if lines(path) > LONGEST
    }
    assert long == {}


def test_most_modules_are_a_page_or_two():
    assert statistics.median(lines(path) for path in sources()) <= MEDIAN


def test_no_folder_is_full():
    """Builds and caches do not count, nor do the methods, which grow in number, and their tests."""
    methods = {f"{start}{name}.py" for name in adapters() for start in ("", "test_")}
    full = {}
    for where in (*FOLDERS, "tests", "docs"):
        for folder_path, folders, names in os.walk(ROOT / where):
            folders[:] = [n for n in folders if n != "__pycache__" and not n.startswith(".")]
            apart = {name for name in names if name.endswith(".so") or name == "libquantarena.txt"}
            place = Path(folder_path).relative_to(ROOT).as_posix()
            if place in ("methods", "tests/methods"):
                apart |= methods
            if len(set(names) - apart) > MOST_FILES:
                full[place] = len(set(names) - apart)
    assert full == {}


# ---- lists -----------------------------------------------------------------------------------


def test_packages_lists_every_folder():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = config["tool"]["setuptools"]["packages"]
    packages = {module_name(path) for path in sources() if path.name == "__init__.py"}
    assert sorted(listed) == sorted(packages)


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for path in sources()}
    assert [f for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


def test_tests_are_no_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


# ---- what is imported at run time ------------------------------------------------------------


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_leaderboard_needs_no_torch():
    names = [module_name(path) for path in sources() if inside(folder(path), "leaderboard")]
    code = "".join(f"import {name}\n" for name in names)
    assert run(f"import sys\n{code}print('torch' in sys.modules)") == "False"


def test_tests_of_the_leaderboard_need_no_torch():
    """Collecting them imports what they import: the fast corner stays fast."""
    code = (
        "import sys, pytest\n"
        "code = pytest.main(['--collect-only', '-qq', '-p', 'no:cacheprovider',"
        " 'tests/leaderboard'])\n"
        "print('\\n', int(code), 'torch' in sys.modules)"
    )
    assert run(code).split()[-2:] == ["0", "False"]


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
