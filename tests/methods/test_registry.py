import subprocess
import sys

import pytest

from quantarena.methods import registry
from quantarena.methods.builtin import builtins
from quantarena.methods.core.errors import UnknownName, UserError

MINE = """
from quantarena.methods.api import Capabilities, Method, MethodContext, MethodInfo
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.registry import register


@register("{name}")
class Mine(Method):
    info = MethodInfo(title="{title}", venue="-", paper="-", summary="min-max on a few points")
    supports = Capabilities()

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        model = ctx.wrap()
        model.set_weight_ranges(minmax_range)
        calibrate_activations(model, ctx.draw(UniformStride(ctx.effort.samples)), minmax_range)
        return model
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    return write


def test_builtin_names_come_first():
    known = tuple(builtins())
    assert known[:2] == ("fp", "rtn")  # the baselines, then the papers by their dates
    assert registry.names()[: len(known)] == known
    for name in builtins():
        found = registry.entry(name)
        assert found.origin == "builtin"
        assert found.method.name == name


@pytest.mark.parametrize(("wrong", "near"), [("rtm", "rtn"), ("q-difusion", "q_diffusion")])
def test_unknown_names_suggest(wrong, near):
    with pytest.raises(UnknownName, match=f"did you mean {near}"):
        registry.entry(wrong)


def test_plugin_is_found(write):
    file = write(MINE.format(name="mine", title="Mine"))
    found = registry.entry("mine", [file])
    assert found.origin == "plugin mine.py"
    assert found.method.info.title == "Mine"
    assert "mine" in registry.names([file])
    assert registry.entry("mine", [file]).method is found.method, "loaded twice"


def test_builtin_wins_a_clash_unless_plugins_are_preferred(write):
    file = write(MINE.format(name="rtn", title="Mine"))
    assert registry.entry("rtn", [file]).method.info.title == "RTN"
    assert registry.entry("rtn", [file], prefer_plugin=True).method.info.title == "Mine"


def test_plugin_that_builds_on_a_builtin_does_not_own_it(write):
    # in a process of its own: here the built-ins are long imported
    file = write(
        "from quantarena.methods.rtn import RoundToNearest\n"
        "from quantarena.methods.registry import register\n"
        "@register('mine')\nclass Mine(RoundToNearest):\n    pass\n"
    )
    code = (
        "from quantarena.methods import registry as r\n"
        f"r.load_plugin({str(file)!r})\n"
        "print(r.entry('rtn').origin, '|', r.entry('mine').origin)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=file.parent
    )
    assert done.stdout.strip() == "builtin | plugin mine.py"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1/0", "fails to import: ZeroDivisionError"),
        ("import no_such_module_at_all", "fails to import: ModuleNotFoundError"),
        ("def broken(:", "fails to import: SyntaxError"),
        ("import sys; sys.exit(3)", "fails to import: SystemExit"),
        ("x = 1", "registers no method"),
        ("from quantarena.methods.rtn import RoundToNearest", "registers no method"),
    ],
)
def test_broken_plugins_are_one_line(write, text, message):
    with pytest.raises(UserError, match=message) as caught:
        registry.load_plugin(write(text))
    assert "\n" not in str(caught.value)


def test_half_a_plugin_leaves_nothing_behind(write):
    file = write(MINE.format(name="mine", title="Mine") + "\n1/0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        registry.load_plugin(file)
    assert "mine" not in registry.names()
    file.write_text(MINE.format(name="mine", title="Mended"))
    assert registry.entry("mine", [file]).method.info.title == "Mended"


def test_missing_plugin_file(tmp_path):
    with pytest.raises(UserError, match="is no file"):
        registry.load_plugin(tmp_path / "none.py")


def test_two_classes_of_one_name_in_one_file(write):
    text = MINE.format(name="mine", title="Mine")
    with pytest.raises(UserError, match="taken"):
        registry.load_plugin(write(text + text.replace("class Mine", "class Other")))


def test_two_files_of_one_name_keep_apart(write):
    from quantarena.bench.closure import method_closure

    one = write(MINE.format(name="one", title="One"), "a/mine.py")
    two = write(MINE.format(name="two", title="Two"), "b/mine.py")
    first, second = registry.entry("one", [one]).method, registry.entry("two", [two]).method
    assert method_closure(first).key != method_closure(second).key
    assert (first.info.title, second.info.title) == ("One", "Two")
