"""What is sent to nodes: the package in the layout of an installed one, plug-ins, nothing built."""

import os
import subprocess
import sys

import pytest

from quantarena.bench import closure as code
from quantarena.bench.cluster import travel, worker
from quantarena.bench.errors import UserError

PLUGIN = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from helping.ranges import widest
from quantarena.methods.api import Capabilities, Method, MethodInfo, register


@register("mine")
class Mine(Method):
    info = MethodInfo(title="Mine", venue="-", paper="-", summary="x")
    supports = Capabilities()

    def quantize(self, ctx):
        return widest(ctx)
"""


@pytest.fixture
def plugin(tmp_path):
    home = tmp_path / "home"
    (home / "helping").mkdir(parents=True)
    (home / "helping" / "__init__.py").write_text("")
    (home / "helping" / "ranges.py").write_text("def widest(ctx):\n    return ctx.wrap()\n")
    (home / "notes.txt").write_text("not imported")
    (home / "mine.py").write_text(PLUGIN)
    return home / "mine.py"


@pytest.fixture
def bag(tmp_path):
    folder = tmp_path / "bag"
    folder.mkdir()
    return folder


def test_a_plugin_travels_with_what_it_imports(plugin, bag):
    made = travel.packed([str(plugin)], bag)
    assert made.plugins == ("0/mine.py",)
    files = {str(f.relative_to(bag / made.bundle)) for f in (bag / made.bundle).rglob("*.py")}
    assert files == {"0/mine.py", "0/helping/__init__.py", "0/helping/ranges.py"}
    assert not list((bag / made.bundle).rglob("*.txt"))


def test_a_facade_travels(plugin, bag):
    """A module that only passes names on is in no key, but has to be there."""
    (plugin.parent / "helping" / "__init__.py").write_text("from helping.ranges import widest\n")
    plugin.write_text(PLUGIN.replace("helping.ranges", "helping"))
    code.forget()
    made = travel.packed([str(plugin)], bag)
    assert (bag / made.bundle / "0" / "helping" / "__init__.py").is_file()
    assert (bag / made.bundle / "0" / "helping" / "ranges.py").is_file()


def test_its_name_is_the_hash_of_its_content(plugin, tmp_path):
    def name(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        return travel.packed([str(plugin)], folder).bundle

    first = name(1)
    assert name(2) == first
    (plugin.parent / "helping" / "ranges.py").write_text("def widest(ctx):\n    return None\n")
    code.forget()
    assert name(3) != first


def test_metrics_travel_too(plugin, bag, monkeypatch):
    metric = plugin.parent / "metric.py"
    metric.write_text("import json\n")
    monkeypatch.setenv(travel.METRICS, str(metric))
    made = travel.packed([str(plugin)], bag)
    assert (made.plugins, made.metrics) == (("0/mine.py",), ("1/metric.py",))


def test_data_beside_it_travels(plugin, bag):
    plugin.write_text('__sources__ = ("tables/*.txt",)\n' + PLUGIN)
    (plugin.parent / "tables").mkdir()
    (plugin.parent / "tables" / "widths.txt").write_text("4 8")
    code.forget()
    made = travel.packed([str(plugin)], bag)
    assert (bag / made.bundle / "0" / "tables" / "widths.txt").read_text() == "4 8"


def test_data_elsewhere_cannot_travel(plugin, bag, monkeypatch):
    other = plugin.parent.parent / "other"
    other.mkdir()
    (other / "far.py").write_text('__sources__ = ("far.txt",)\n')
    (other / "far.txt").write_text("x")
    plugin.write_text("import far\n" + PLUGIN)
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    code.forget()
    with pytest.raises(UserError, match=r"needs .*far\.txt, which is not below its folder"):
        travel.packed([str(plugin)], bag)


def test_the_package_that_arrives_is_the_one_that_runs(bag):
    """Its stage keys are equal: the closure of the stages, C++ sources included, has one hash."""
    travel.packed([], bag)
    assert not list(bag.rglob("libquantarena.*"))
    script = (
        "from quantarena.bench import closure; print(closure.__file__); "
        "print(closure.closure('quantarena.bench.stages.sequence').key)"
    )
    environment = {**os.environ, "PYTHONPATH": str(bag)}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    file, key = ran.stdout.split()
    assert file.startswith(str(bag))
    assert key == code.closure("quantarena.bench.stages.sequence").key


def test_plugins_are_found_where_they_arrived(plugin, bag, monkeypatch):
    made = travel.packed([str(plugin)], bag)
    monkeypatch.setattr(sys, "path", [*sys.path, str(bag)])
    assert travel.unpacked(made.bundle) == bag / made.bundle
    with pytest.raises(UserError, match="did not arrive"):
        travel.unpacked("quantarena_plugins_0")


def asked(tmp_path, **changes):
    (tmp_path / "token").touch()
    made = worker.asked_here(tmp_path, "token", kernels=False)
    return worker.Asked(**{f: changes.get(f, getattr(made, f)) for f in made.__slots__})


def test_a_node_that_is_like_the_driver_takes_part(tmp_path):
    assert worker.describe_node(asked(tmp_path))["refused"] == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token": "absent"}, "put --results on a folder that all nodes share"),
        ({"results": "/nowhere"}, "it does not see /nowhere"),
        ({"versions": {"torch": "0.1"}}, "the driver has 0.1"),
        ({"versions": {"nonesuch": "1"}}, "it has nonesuch not at all"),
        ({"python": "2.7.18"}, "the driver has 2.7.18"),
        ({"models": ("/nowhere/model",)}, "it has no /nowhere/model"),
    ],
)
def test_a_node_says_why_it_takes_no_part(tmp_path, changes, reason):
    assert reason in worker.describe_node(asked(tmp_path, **changes))["refused"]


def test_kernels_are_built_once(tmp_path, monkeypatch):
    """The compiler is run for the first process; the others take the library from the cache."""
    compiled = []

    class Builder:
        LIBRARY_NAME, REASON_NAME = "libquantarena.so", "libquantarena.txt"

        def __init__(self, package):
            self.__file__ = str(package / "build.py")

        def find_compiler(self):
            return None

        def build_into(self, folder, sources):
            compiled.append(sources)
            (folder / self.LIBRARY_NAME).write_bytes(b"library")
            return f"built {folder}"

    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "index"))
    packages = []
    for name in ("one", "two", "three"):
        package = tmp_path / name
        (package / "csrc").mkdir(parents=True)
        text = "int x;" if name != "three" else "int y;"
        (package / "csrc" / "a.cpp").write_text(text)
        (package / "build.py").write_text("")
        packages.append(package)
    said = []
    for package in packages:
        monkeypatch.setattr(worker, "_builder", lambda package=package: Builder(package))
        said.append(worker.ensure_kernels())
        assert (package / "libquantarena.so").read_bytes() == b"library"
        assert worker.ensure_kernels() == ""
    assert [line.split()[0] for line in said] == ["built", "kernels", "built"]
    assert compiled == [packages[0] / "csrc", packages[2] / "csrc"]


def test_two_timings_do_not_overlap(tmp_path, monkeypatch):
    """The second waits for the first, and says so."""
    monkeypatch.setattr(worker.tempfile, "gettempdir", lambda: str(tmp_path))
    script = (
        "import sys, tempfile, time; tempfile.tempdir = sys.argv[1]\n"
        "from quantarena.bench.cluster.worker import alone_on_machine\n"
        "with alone_on_machine():\n    print('in', flush=True); time.sleep(1.5)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "in\n"
    waited = []
    with worker.alone_on_machine(lambda: waited.append(child.poll())):
        assert child.poll() is not None or child.wait(timeout=5) == 0
    assert waited == [None]


def test_the_key_of_a_plugins_stages_does_not_depend_on_its_place(plugin, bag):
    """Else a node, where it lies elsewhere, would compute again what the driver's machine has."""
    from quantarena.methods import registry

    made = travel.packed([str(plugin)], bag)
    keys = []
    for file in (plugin, bag / made.bundle / made.plugins[0]):
        code.forget()
        registry.load_plugin(file)
        kinds = [e.method for e in registry._entries["mine"] if e.origin == "plugin mine.py"]
        keys.append(code.method_closure(kinds[-1]).key)
        registry._entries.pop("mine")
        for name in [n for n in sys.modules if n.partition(".")[0] == "helping"]:
            del sys.modules[name]
    assert keys[0] == keys[1]
