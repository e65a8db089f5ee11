"""What the harness publishes: the page's modules, and colours for all methods."""

import json

from quantarena.bench.report import publish
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.store import Planned, Store
from quantarena.leaderboard.page.plot import COLOURS, STYLES
from quantarena.methods.builtin import builtins


def test_every_method_of_a_preset_has_a_look_of_its_own():
    methods = [m for m in builtins().values() if m.board_bits]
    assert len(methods) <= COLOURS * STYLES


def test_the_page_is_written_again_only_when_a_row_changed(tmp_path):
    store = Store(tmp_path)
    cell = Cell("w", "rtn", "w4a8")
    planned = Planned("Title of the grid", "the command", (cell,))
    page = publish.refresh(store, planned)
    first = page.stat().st_mtime_ns
    assert "Title of the grid" in page.read_text()
    assert json.loads((tmp_path / "ranking.json").read_text())["boards"] == []
    assert publish.refresh(store, planned).stat().st_mtime_ns == first
    store.put(Row(cell, Status.FAILED, "it broke"))
    assert "it broke" in publish.refresh(store, planned).read_text()
    assert (tmp_path / "rows.csv").is_file()


def test_tables_of_every_form(tmp_path):
    store = Store(tmp_path / "run")
    store.put(Row(Cell("w", "rtn", "w4a8"), Status.FAILED, "it broke"))
    for form in publish.FORMATS:
        path = publish.export(store, form, tmp_path / form)
        assert path.stat().st_size > 0
        assert path.parent == tmp_path / form
