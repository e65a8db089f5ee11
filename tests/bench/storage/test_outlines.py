"""Outlines of rows: equal to those of a full reading, and no row."""

from dataclasses import replace

import pytest

from quantarena.bench.schema import Latency, Row, Status
from quantarena.bench.spec import Budget, Cell
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


def test_outlines_are_those_of_the_rows_with_an_index_and_without(store):
    expected = tuple(outline(row) for row in store.rows())
    assert outlines(store) == expected
    assert (store.folder / INDEX).is_file()
    assert outlines(store) == expected
    assert [row.key for row in expected] == sorted(row.key for row in expected)


def test_an_unchanged_row_is_not_read_again_and_a_changed_one_is(store, monkeypatch):
    outlines(store)
    read = []
    get = Store.get
    monkeypatch.setattr(Store, "get", lambda self, key: read.append(key) or get(self, key))
    outlines(store)
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
    assert outlines(store) == expected


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
