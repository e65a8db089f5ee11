"""Outlines of rows: equal to those of a full reading, and no row."""

import json
from dataclasses import replace

import pytest

from quantarena.bench.schema import Latency, Row, Status
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.storage import outlines as module
from quantarena.bench.storage.outlines import INDEX, outline, outlines
from quantarena.bench.store import Store
from quantarena.bench.target import Target

LATENCY = Latency(1, 0, 1, "fp32", 1, 1, 1, 1, 1, 20, 1, "packed", "perf_counter", 1)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "run")
    for seed in range(6):
        cell = Cell("w", "dgq", "w4a8", seed, options=(("groups", "4"),) * (seed % 2))
        cell = replace(
            cell, budget=Budget(images=seed % 2 + 1), target=Target(threads=1 + seed % 2)
        )
        made.put(
            Row(
                cell,
                Status.OK if seed else Status.FAILED,
                reason=None if seed else "broken",
                latency=LATENCY if seed > 2 else None,
                machine={
                    "cpu": f"c{seed % 2}",
                    "cores": 2,
                    "gpu": None,
                    "versions": {"torch": "2"},
                },
                method={"rival": seed == 5, "title": "T"},
                seconds={"quantize": 1.5},
                stage_keys={"inputs": "s"},
                warnings=("one",) * seed,
            )
        )
    return made


def later(store):
    """The outlines as another process reads them, which knows no more than the disk."""
    module._last = None
    return outlines(store)


def test_outlines_are_those_of_the_rows_with_an_index_and_without(store):
    expected = tuple(outline(row) for row in store.rows())
    assert outlines(store) == expected
    assert (store.folder / INDEX).is_file()
    assert outlines(store) == expected
    assert later(store) == expected
    assert [row.key for row in expected] == sorted(row.key for row in expected)


def test_an_unchanged_row_is_not_read_again_and_a_changed_one_is(store, monkeypatch):
    outlines(store)
    read = []
    get = Store.get
    monkeypatch.setattr(Store, "get", lambda self, key: read.append(key) or get(self, key))
    outlines(store)
    later(store)
    assert read == []
    row = store.rows()[2]
    store.put(replace(row, status=Status.OK, reason=None))
    found = {each.key: each for each in outlines(store)}
    assert read.count(row.key) >= 1
    assert found[row.key].attempt == 2


@pytest.mark.parametrize("damage", ["", "{", '{"form": 1}', '{"form": 99, "rows": {}}', "[]"])
def test_a_damaged_index_is_as_good_as_none(store, damage):
    expected = outlines(store)
    (store.folder / INDEX).write_text(damage)
    assert later(store) == expected


def test_a_process_reads_the_index_of_its_folder_once(store, monkeypatch):
    expected = outlines(store)
    opened = []
    index = module._Index
    monkeypatch.setattr(module, "_Index", lambda path: opened.append(path) or index(path))
    assert later(store) == expected
    assert outlines(store) == outlines(store) == expected
    assert outlines(replace(store, foreign=True)) == expected  # another run's: kept nowhere
    assert opened == [store.folder / INDEX] * 2


def test_rows_that_come_one_by_one_reach_the_index(store):
    outlines(store)
    for seed in range(10, 16):
        cell = replace(store.rows()[0].cell, seed=seed)
        store.put(Row(cell, Status.FAILED, "broken"))
        outlines(store)
    assert len(json.loads((store.folder / INDEX).read_text())["rows"]) >= 9  # of 12


def test_a_damaged_row_is_moved_aside(store):
    before = outlines(store)
    store.path(before[0].key).write_text("{half")
    assert outlines(store) == before[1:]
    assert list((store.rows_folder / "aside").iterdir())


def test_an_outline_is_no_row(store):
    with pytest.raises(ValueError, match="an outline is no row"):
        store.put(outlines(store)[0])
    assert len(store.rows()) == 6


def test_an_empty_folder_has_none(tmp_path):
    assert outlines(Store(tmp_path / "none")) == ()
    assert not (tmp_path / "none").exists()
