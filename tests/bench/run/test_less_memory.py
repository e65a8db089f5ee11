"""Memory that runs out: once more with half the images drawn together, which the row tells."""

import os

import pytest

from quantarena.bench.run.attempt import attempt
from quantarena.bench.run.executors import Outcome, Setting, Task
from quantarena.bench.run.rows import with_less
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Budget, Cell

CELL = Cell("emoji-t2i", "rtn", "w4a8")


def cells_begun(bench):
    return [line for line in bench.log() if line.startswith("cell rtn/w4a8")]


def test_half_the_batch_helps(bench):
    bench.behave(rtn__w4a8="large")
    code, out, err = bench("run", "smoke", "--executor", "local")
    assert (code, out.split(" -> ")[0]) == (0, "5 ok, 0 skipped, 0 failed"), err
    assert cells_begun(bench) == ["cell rtn/w4a8", "cell rtn/w4a8 batch 8"]
    row = next(row for row in bench.rows() if (row.cell.method, row.cell.bits) == ("rtn", "w4a8"))
    assert row.cell.budget.batch == 16  # the cell, and so its key, are what was asked for
    warned = "memory ran out with 16 images together, so they were drawn 8 at a time"
    assert warned in row.warnings
    assert "memory ran out with 16 images together; it starts again with 8" in err
    others = [row for row in bench.rows() if row.cell.bits != "w4a8"]
    assert not any("memory ran out" in line for row in others for line in row.warnings)


def test_only_once(bench):
    bench.behave(rtn__w4a8="memory")
    assert bench("run", "smoke", "--executor", "local")[0] == 1
    assert cells_begun(bench) == ["cell rtn/w4a8", "cell rtn/w4a8 batch 8"]
    row = next(row for row in bench.rows() if row.status is Status.OOM)
    assert any("drawn 8 at a time" in line for line in row.warnings)


def test_shared_stages_too(bench):
    bench.behave(prepare="memory")
    assert bench("run", "smoke", "--executor", "local")[0] == 1
    assert sum(line.startswith("prepare") for line in bench.log()) == 2


@pytest.mark.parametrize(
    ("task", "status", "row", "batch"),
    [
        (Task("cell", CELL), Status.OOM, None, 8),
        (Task("cell", CELL), Status.OK, Row(CELL, Status.OOM), 8),
        (Task("cell", CELL, batch=8), Status.OOM, None, None),
        (Task("cell", CELL), Status.FAILED, None, None),
        (Task("cell", CELL), Status.OK, Row(CELL, Status.OK), None),
        (Task("cell", Cell("a", "b", "w8a8", budget=Budget(batch=1))), Status.OOM, None, None),
    ],
)
def test_what_is_tried_again(task, status, row, batch):
    again = with_less(Outcome(task, status, 1.0, row))
    assert (again and again.batch) == batch
    assert again is None or again == task  # the same task, to all who wait for it


def test_a_timing_that_ended_is_not_repeated(bench, monkeypatch):
    """The driver died after a process had timed a row and before the row was stored."""
    bench("run", "smoke", "--executor", "local")
    from dataclasses import replace

    from quantarena.bench.store import Store

    store = Store(bench.results / "smoke")
    timed = store.rows()[0]
    bare = store.amend(replace(timed, latency=None, latency_by_batch=()))
    setting = Setting(str(bench.results / "smoke"), str(bench.cache), "fake_stages")
    outcome = attempt(Task("time", bare.cell, bare), setting, lambda *news: None)
    assert outcome.row.latency == timed.latency
    before = len(bench.log())
    code, _, err = bench("run", "smoke")
    assert code == 0
    assert len(bench.log()) == before
    assert store.get(timed.key).latency == timed.latency
    # Another attempt at the cell has to be timed for itself.
    attempt(Task("time", bare.cell, bare), setting, lambda *news: None)
    store.amend(replace(bare, finished="2020-01-01T00:00:00+00:00"))
    assert bench("run", "smoke")[0] == 0
    assert len(bench.log()) == before + 2, err
    assert not list(os.scandir(bench.results / "smoke" / ".timed" / "rows"))
