"""Cells: what is in their key."""

from dataclasses import asdict, replace

from quantarena.bench.documents import read
from quantarena.bench.spec import Budget, Cell, Grid

CELL = Cell("emoji-t2i", "dgq", "w4a8", budget=Budget(images=16))


def test_a_cell_without_options_has_the_key_that_it_always_had():
    assert Cell("emoji-t2i", "fp", "fp").key == "43a37f3cf0667f40"


def test_options_are_in_the_key_and_the_label_but_not_in_the_shared_key():
    cell = replace(CELL, options=(("groups", "4"), ("log2", "false")))
    assert cell.key != CELL.key
    assert cell.shared_key == CELL.shared_key
    assert cell.label == "emoji-t2i/dgq[groups=4,log2=false]/w4a8"
    assert CELL.label == "emoji-t2i/dgq/w4a8"


def test_a_cell_comes_back_from_its_document():
    for options in ((), (("groups", "4"),)):
        cell = replace(CELL, options=options)
        document = {**asdict(cell), "options": [list(pair) for pair in options]}
        assert read(Cell, document) == cell
    older = {name: value for name, value in asdict(CELL).items() if name != "options"}
    assert read(Cell, older) == CELL


def test_options_of_a_grid_reach_the_cells_of_their_method_alone():
    grid = Grid(
        "g", "G", ("w",), ("fp", "rtn", "dgq"), ("w4a8",), options=(("dgq", (("groups", "4"),)),)
    )
    assert {cell.method: cell.options for cell in grid.cells()} == {
        "fp": (),
        "rtn": (),
        "dgq": (("groups", "4"),),
    }
