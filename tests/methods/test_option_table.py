"""The tables of options in docs/methods are current."""

from pathlib import Path

import pytest

from quantarena.methods.builtin import builtins
from quantarena.methods.option_table import END, HEADING, START, updated
from quantarena.methods.registry import entry

PAGES = Path(__file__).parents[2] / "docs" / "methods"


@pytest.mark.parametrize("name", [n for n in builtins() if entry(n).method.switches])
def test_the_page_of_a_method_lists_its_options(name):
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert page.count(START) == page.count(END) == 1
    assert page == updated(page, name), (
        "run: python -m quantarena.methods.option_table docs/methods"
    )


def test_a_page_without_a_table_gets_one_under_its_heading():
    page = f"# PTQ4DM\n\n{HEADING}Text.\n\n## What it costs\n"
    first = updated(page, "ptq4dm")
    before, _, after = first.partition(START)
    assert before == f"# PTQ4DM\n\n{HEADING}"
    assert after.partition(END)[2] == "\n\nText.\n\n## What it costs\n"
    assert updated(first, "ptq4dm") == first
    stale = first.replace("`ndtc`", "`gone`")
    assert updated(stale, "ptq4dm") == first
