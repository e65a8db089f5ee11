"""Typed reading of JSON documents: what comes back, and what is said of a fault."""

import dataclasses
import re
from dataclasses import dataclass

import pytest

from quantarena.bench.documents import read
from quantarena.bench.spec import Cell


@dataclass(frozen=True, slots=True)
class Inner:
    share: float
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Outer:
    count: int
    inner: tuple[Inner, ...] = ()


def test_a_dataclass_comes_back_with_its_nested_ones():
    outer = Outer(3, (Inner(0.5, "half"), Inner(1.0)))
    assert read(Outer, {"count": 3, "inner": [{"share": 0.5, "label": "half"}, {"share": 1}]}) == (
        outer
    )
    cell = Cell("w", "rtn", "w4a8")
    assert read(Cell, dataclasses.asdict(cell)) == cell


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({}, "missing field count"),
        ({"count": 1, "colour": 2}, "unknown field colour"),
        ({"count": 1.5}, "count should be a valid integer, not 1.5"),
        ({"count": "1"}, 'count should be a valid integer, not "1"'),
        ({"count": True}, "count should be a valid integer, not true"),
        ({"count": 1, "inner": [{"share": 1}, {}]}, "missing field inner[1].share"),
        ({"count": 1, "inner": [{"share": 1, "x": 0}]}, "unknown field inner[0].x"),
        ([], "the document should be an object, not []"),
    ],
)
def test_a_fault_is_one_line_that_names_the_field(document, line):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        read(Outer, document)


def test_many_faults_are_still_one_short_line():
    document = {"count": 1, "inner": [{} for _ in range(9)]}
    with pytest.raises(ValueError, match=r"^missing field inner\[0\].share; .* and 6 more$"):
        read(Outer, document)
