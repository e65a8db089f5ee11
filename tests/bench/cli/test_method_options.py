"""``--option METHOD.NAME=VALUE``: on the cells of its method, on their rows, in the listing."""

import json

import pytest

from quantarena.bench.plan.presets import PRESETS

GIVEN = ("--option", "q_diffusion.split_shortcuts=false")
PAIRS = (("split_shortcuts", "false"),)


def test_options_are_on_the_rows_of_their_method_alone(bench):
    code, out, err = bench("run", "smoke", *GIVEN)
    assert code == 0, err
    assert out.startswith("5 ok")
    found = {(row.cell.method, row.cell.options) for row in bench.rows()}
    assert found == {("fp", ()), ("rtn", ()), ("q_diffusion", PAIRS)}


def test_a_cell_with_options_is_another_cell_on_the_same_page(bench, real_page):
    bench("run", "smoke")
    code, out, _ = bench("run", "smoke", *GIVEN)
    assert code == 0
    assert bench.log().count("cell q_diffusion/w4a8") == 2
    assert bench.log().count("cell rtn/w4a8") == 1
    assert len(bench.rows()) == 7
    page = (bench.results / "smoke/leaderboard.html").read_text()
    assert "q_diffusion[split_shortcuts=false]" in page
    code, out, _ = bench("show", "q_diffusion[split_shortcuts=false]@w4a8", "--json")
    assert json.loads(out)["cell"]["options"] == [["split_shortcuts", "false"]]
    assert json.loads(bench("show", "q_diffusion@w4a8", "--json")[1])["cell"]["options"] == []


def test_an_option_at_its_default_changes_nothing(bench):
    document = json.loads(
        bench("plan", "smoke", "--option", "q_diffusion.split_shortcuts=true", "--json")[1]
    )
    keys = {cell["key"] for cell in document["cells"]}
    assert keys == {cell.key for cell in PRESETS["smoke"].grid.cells()}


def test_the_page_repeats_the_command_with_its_options(bench):
    bench("run", "smoke", *GIVEN)
    planned = json.loads((bench.results / "smoke/plan.json").read_text())
    assert "--option q_diffusion.split_shortcuts=false" in planned["command"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "q_diffusion.split_shortcut=1",
            "no option 'split_shortcut': did you mean split_shortcuts?",
        ),
        ("q_diffusion.split_shortcuts=2", "it must be true or false"),
        ("q_difusion.split_shortcuts=true", "'q_difusion' does not run here: did you mean q_diff"),
        ("dgq.groups=4", "method 'dgq' does not run here"),
        ("fp.groups=4", "fp has no options"),
        ("groups=4", "write METHOD.NAME=VALUE, such as dgq.groups=4"),
        ("q_diffusion.split_shortcuts", "write METHOD.NAME=VALUE"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_mistake_is_one_line_before_anything_is_written(bench, verb, text, line):
    code, out, err = bench(verb, "smoke", "--option", text)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: --option {text}: ")
    assert line in err
    assert len(err.splitlines()) == 1
    assert not (bench.results / "smoke").exists()


def test_options_of_a_plugin(bench):
    plugin = bench.root / "mine.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from quantarena.methods.api import MethodOptions, register\n"
        "from quantarena.methods.rtn import RoundToNearest\n"
        "@register('mine')\n"
        "class Mine(RoundToNearest):\n"
        "    @dataclass(frozen=True)\n"
        "    class Options(MethodOptions):\n"
        '        """Mine.\n\n        Attributes:\n            knob: a knob.\n        """\n'
        "        knob: int = 1\n"
    )
    given = ("--plugin", str(plugin), "--method", "mine", "--option", "mine.knob=2")
    code, _, err = bench("run", "smoke", *given)
    assert code == 0, err
    assert {row.cell.options for row in bench.rows() if row.cell.method == "mine"} == {
        (("knob", "2"),)
    }
    listing = bench("ls", "methods", "--options", "--plugin", str(plugin), "--json", results=False)
    assert {"mine.knob", "dgq.groups"} <= {row["option"] for row in json.loads(listing[1])}


def test_the_listing_of_options(bench):
    code, out, _ = bench("ls", "methods", "--options", results=False)
    assert code == 0
    assert "dgq.groups" in out
    assert "a whole number, at least 1" in out
    code, _, err = bench("ls", "presets", "--options", results=False)
    assert code == 2
    assert "ls methods --options" in err
