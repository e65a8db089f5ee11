"""Keys from what is really used: every file in a closure counts, and no other."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantarena.bench import closure as closures
from quantarena.bench import source_imports
from quantarena.bench.closure import closure, file_closure

ROOT = Path(__file__).parents[2]
ROOMS = ("bench", "methods", "leaderboard")
STAGES = ("record", "fp_images", "quantize", "sample", "closeness", "floors", "sequence", "latency")
ROOTS = (
    *(f"quantarena.bench.stages.{name}" for name in STAGES),
    *(f"quantarena.methods.{name}" for name in ("rtn", "dgq", "repquant", "serial_to_parallel")),
)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of the library that closures are read from."""
    skipped = shutil.ignore_patterns("__pycache__", "zoo", "data", "assets", "*.so")
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=skipped)
    monkeypatch.setattr(closures, "_ROOT", tmp_path)
    monkeypatch.setattr(
        closures, "_ROOTS", {f"quantarena.{room}": tmp_path / room for room in ROOMS}
    )
    closures.forget()
    yield tmp_path
    closures.forget()


def dotted(file, root):
    parts = list(file.relative_to(root).with_suffix("").parts)
    if parts[:2] == ["bench", "_root"]:
        parts = parts[2:]
    if parts and parts[-1] == "__init__":
        parts.pop()
    return ".".join(["quantarena", *parts])


def keys():
    return {root: closure(root).key for root in ROOTS}


@pytest.mark.slow
def test_an_edit_makes_exactly_those_stale_whose_closure_holds_it(tree):
    """Every module of the library in turn gets another line of code."""
    before = keys()
    holders = {root: closure(root).files for root in ROOTS}
    touched = 0
    for file in sorted(f for room in ROOMS for f in (tree / room).rglob("*.py")):
        name, text = dotted(file, tree), file.read_bytes()
        file.write_bytes(text + b"\nEDITED = 1\n")
        closures.forget(file)
        after = keys()
        # a facade is in no closure until it holds more than imports
        new = {root for root in ROOTS if name in closure(root).files}
        stale = {root for root in ROOTS if after[root] != before[root]}
        assert stale == {root for root in ROOTS if name in holders[root]} | new, name
        touched += bool(stale)
        file.write_bytes(text)
        closures.forget(file)
    assert keys() == before
    assert touched > 100


LOADED = """
import importlib, sys, types

class Door(types.ModuleType):
    def __getattr__(self, name):
        if name not in HOMES:
            raise AttributeError(name)
        return getattr(importlib.import_module(HOMES[name]), name)

sys.modules["quantarena.methods.api"] = Door("quantarena.methods.api")
importlib.import_module(ROOT)
print(*(n for n in sys.modules if n.startswith("quantarena.")))
"""


def loaded_by(module):
    """Modules of quantarena that are loaded once ``module`` is imported, in a fresh process.

    The authors' facade imports everything that any author may want. Here it gives each name from
    the module that defines it, so that only what ``module`` asks for is loaded.
    """
    facade = ast.parse((ROOT / "methods" / "api.py").read_text(encoding="utf-8"))
    lines = [node for node in facade.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: line.module for line in lines for alias in line.names}
    code = f"HOMES, ROOT = {homes!r}, {module!r}{LOADED}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("root", ["quantarena.bench.stages.record", "quantarena.methods.dgq"])
def test_nothing_that_python_loads_is_forgotten(root):
    """Python's own import system is the judge; facades and empty packages compute nothing."""
    missing = loaded_by(root) - set(closure(root).files)
    for name in missing:
        file = closures._of_quantarena(name)
        assert source_imports.source(file, name).facade, name


def test_stages_hold_what_makes_them_and_nothing_else():
    made_by = {name: closure(f"quantarena.bench.stages.{name}") for name in STAGES}
    assert "quantarena.methods.published" in closure("quantarena.methods.dgq")
    assert "methods/core/kernels/csrc/library.cpp" in made_by["sample"]
    assert "quantarena.bench.stages.quantize" in made_by["sequence"]
    for name, found in made_by.items():
        assert not [f for f in found.files if ".timing." in f or ".cli." in f], name
        assert not [f for f in found.files if "csrc/fuzz" in f], name
        assert found.libraries["torch"]
    assert not [f for f in made_by["record"].files if ".metrics." in f or ".packed." in f]
    assert not [f for f in made_by["quantize"].files if ".metrics." in f]
    techniques = [f for f in made_by["quantize"].files if ".techniques." in f]
    assert techniques == []


@pytest.fixture
def plugin(tmp_path):
    """A plug-in whose helper imports a helper of its own."""
    (tmp_path / "deeper").mkdir()
    files = {
        "mine.py": "import sys\nfrom helper import FACTOR\nimport torch\n",
        "helper.py": "def late():\n    from deeper.inner import X\nFACTOR = 1\n",
        "deeper/__init__.py": "",
        "deeper/inner.py": "from . import beside\nX = 1\n",
        "deeper/beside.py": "Y = 1\n",
        "stranger.py": "Z = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture(autouse=True)
def _nothing_remembered():
    closures.forget()
    yield
    closures.forget()


@pytest.mark.parametrize("name", ["mine.py", "helper.py", "deeper/inner.py", "deeper/beside.py"])
def test_every_file_that_a_plug_in_imports_counts(plugin, name):
    before = file_closure(plugin / "mine.py").key
    (plugin / name).write_text((plugin / name).read_text() + "MORE = 2\n")
    closures.forget()
    assert file_closure(plugin / "mine.py").key != before


def test_what_a_plug_in_does_not_import_does_not_count(plugin):
    before = file_closure(plugin / "mine.py")
    (plugin / "stranger.py").write_text("Z = 2\n")
    closures.forget()
    assert file_closure(plugin / "mine.py").key == before.key
    assert set(before.libraries) == {"torch"}


def test_names_of_a_facade_are_followed_to_where_they_are_defined(tmp_path):
    (tmp_path / "door.py").write_text('"""Names."""\nfrom one import a\nfrom two import b as c\n')
    (tmp_path / "one.py").write_text("a = 1\n")
    (tmp_path / "two.py").write_text("b = 1\n")
    (tmp_path / "user.py").write_text("from door import c\n")
    (tmp_path / "whole.py").write_text("import door\n")
    user = file_closure(tmp_path / "user.py").files
    assert set(user) == {"user", "two", "door:c"}
    assert user["door:c"] == "two:b"
    assert set(file_closure(tmp_path / "whole.py").files) == {"whole", "one", "two"}


def test_imports_for_type_checkers_alone_do_not_count(tmp_path):
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import one\nelse:\n    "
    text += "import two\n"
    for name, content in {"user": text, "one": "a = 1\n", "two": "b = 1\n"}.items():
        (tmp_path / f"{name}.py").write_text(content)
    assert set(file_closure(tmp_path / "user.py").files) == {"user", "two"}


def test_no_module_is_found_by_a_name_that_is_put_together():
    """An import by a computed name would be invisible: there is one, of methods by their name."""
    odd = set()
    for file in (f for room in ("bench", "methods") for f in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            function = getattr(node, "func", None)
            called = getattr(function, "attr", getattr(function, "id", ""))
            if called == "import_module" and not isinstance(node.args[0], ast.Constant):
                odd.add(dotted(file, ROOT))
    stages = closure("quantarena.bench.stages.sequence").files
    assert sorted(odd & set(stages)) == ["quantarena.methods.registry"]


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


WAYS = {
    "import pkg.sub\npkg.F\n": "pkg/__init__.py",
    "import pkg.sub as s\n": "pkg/helper.py",
    "from pkg.sub import y\n": "pkg/__init__.py",
    "from one import *\nfrom two import *\n": "two.py",
    "from importlib import import_module as im\nim('two')\n": "two.py",
    "import importlib\nimportlib.import_module(name='two')\n": "two.py",
    "from importlib import import_module\nNAME = 'two'\nimport_module(NAME)\n": "two.py",
    "__import__('two')\n": "two.py",
    "TYPE_CHECKING = False\nif not TYPE_CHECKING:\n    import two\n": "two.py",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING or True:\n    import two\n": "two.py",
    "from stars import b\n": "two.py",
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_import_a_helper(tmp_path, way):
    write(
        tmp_path,
        {
            "mine.py": way,
            "one.py": "a = 1\n",
            "two.py": "b = 1\n",
            "stars.py": "from one import *\nfrom two import *\n",
            "pkg/__init__.py": "from pkg.helper import F\nG = 1\n",
            "pkg/helper.py": "F = 1\n",
            "pkg/sub.py": "y = 1\n",
        },
    )
    before = file_closure(tmp_path / "mine.py").key
    edited = tmp_path / WAYS[way]
    edited.write_text(edited.read_text() + "MORE = 2\n")
    closures.forget()
    assert file_closure(tmp_path / "mine.py").key != before


def test_another_binding_of_a_facade_counts(tmp_path):
    write(
        tmp_path,
        {
            "mine.py": "from door import search\n",
            "door.py": "from one import a as search\nfrom one import b as search\n",
            "one.py": "a = 1\nb = 2\n",
        },
    )
    before = file_closure(tmp_path / "mine.py")
    assert before.files["door:search"] == "one:b"  # the last one counts, as in Python
    (tmp_path / "door.py").write_text("from one import a as search\n")
    closures.forget()
    assert file_closure(tmp_path / "mine.py").key != before.key


def test_an_installed_plug_in_enters_with_its_own_package_alone(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    write(
        site,
        {
            "my_quantization/__init__.py": "",
            "my_quantization/mine.py": "import other\nfrom my_quantization import helper\n",
            "my_quantization/helper.py": "F = 1\n",
            "other/__init__.py": "X = 1\n",
        },
    )
    monkeypatch.syspath_prepend(str(site))
    closures.forget()
    found = closure("my_quantization.mine")
    assert set(found.files) == {"my_quantization.mine", "my_quantization.helper"}
    assert found.libraries == {"other": "absent"}


def test_sources_may_be_annotated(tmp_path):
    text = "__sources__: tuple[str, ...] = ('table.csv',)\n"
    write(tmp_path, {"mine.py": text, "table.csv": "1\n"})
    before = file_closure(tmp_path / "mine.py").key
    (tmp_path / "table.csv").write_text("2\n")
    closures.forget()
    assert file_closure(tmp_path / "mine.py").key != before


def test_variables_that_a_plan_hashes_are_those_that_are_read():
    from quantarena.bench.metrics import plugins
    from quantarena.bench.metrics.quality import inception_weights
    from quantarena.bench.metrics.text import clip
    from quantarena.bench.plan import lookup

    assert lookup.METRICS == plugins.VARIABLE
    assert lookup.METRIC_WEIGHTS == (clip.VARIABLE, inception_weights.VARIABLE)
    text = (ROOT / "methods/core/kernels/native.py").read_text(encoding="utf-8")
    assert f'os.environ.get("{lookup.KERNELS}")' in text
