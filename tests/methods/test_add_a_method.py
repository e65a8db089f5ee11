"""The method in docs/add-a-method.md is complete, short, and passes what every method must."""

import re
from pathlib import Path

import pytest

from quantarena.methods.testing.conformance import check

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    file = tmp_path_factory.mktemp("plugin") / "smoothed_steps.py"
    file.write_text(blocks[0])
    return file


def test_example_is_at_most_sixty_lines(plugin):
    assert len(plugin.read_text().splitlines()) <= 60


def test_example_passes_conformance(plugin):
    results = check("smoothed_steps", [plugin])
    assert [f"{r.name} on {r.model}: {r.detail}" for r in results if not r.passed] == []
    names = {r.name for r in results}
    assert {"level matters", "per_call matters", "packed equals fake"} <= names


def test_the_method_of_the_readme_conforms(tmp_path):
    text = PAGE.parents[1].joinpath("README.md").read_text()
    blocks = [b for b in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "@" in b]
    assert len(blocks) == 1
    file = tmp_path / "mine.py"
    file.write_text(blocks[0])
    assert [r for r in check("mine", [file]) if not r.passed] == []
