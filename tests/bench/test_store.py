import json
import multiprocessing
import os
from dataclasses import replace

import pytest

from quantarena.bench.errors import UserError
from quantarena.bench.schema import Measurement, Row, Status
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.store import Planned, Store, parse_row

CELL = Cell("emoji-t2i", "rtn", "w4a8")
OK = Row(CELL, Status.OK, measurements=(Measurement("psnr", 34.5, 34.0, 35.0, 128, "dB", True),))
FAILED = Row(CELL, Status.FAILED, "it broke")


@pytest.fixture
def lines():
    return []


@pytest.fixture
def store(tmp_path, lines):
    return Store(tmp_path / "quick", lines.append)


def test_a_row_comes_back_as_it_was(store):
    assert store.put(OK) == OK
    assert store.get(CELL.key) == OK
    assert store.rows() == (OK,)


def test_a_row_keeps_the_order_of_its_facts_and_any_layout_of_its_file(store):
    workload = {"scheduler": "DDIM", "resolution": 64, "key": CELL.key, "digest": "none"}
    row = replace(OK, workload=workload, method={"key": CELL.key})
    store.put(row)
    path = store.path(CELL.key)
    document = json.loads(path.read_text())
    for text in (path.read_text(), json.dumps(document), json.dumps(document, indent=3)):
        read = parse_row(text)
        assert read == row
        assert list(read.workload) == list(workload)


def test_an_empty_folder_has_no_rows(store):
    assert store.rows() == ()
    assert store.get(CELL.key) is None


def test_the_newest_attempt_wins_and_earlier_ones_are_kept(store):
    store.put(FAILED)
    assert store.put(OK).attempt == 2
    assert store.get(CELL.key).status is Status.OK
    kept = store.rows_folder / "earlier" / f"{CELL.key}.1.json"
    assert parse_row(kept.read_text()).reason == "it broke"


def test_a_failed_attempt_does_not_replace_an_ok_row(store):
    store.put(OK)
    assert store.put(FAILED).attempt == 2
    assert store.get(CELL.key).status is Status.OK
    assert store.put(FAILED).attempt == 3


def test_unless_it_is_forced(store):
    store.put(OK)
    store.put(FAILED, force=True)
    assert store.get(CELL.key).status is Status.FAILED


def test_an_amended_row_is_the_same_attempt(store):
    store.put(OK)
    store.amend(replace(OK, peak_bytes=5))
    assert store.get(CELL.key).peak_bytes == 5
    assert store.get(CELL.key).attempt == 1
    assert not (store.rows_folder / "earlier").exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: "", "not JSON"),
        (lambda text: "[1, 2]", "not a JSON object"),
        (lambda text: '{"name": "package.json of someone"}', "its digest does not fit"),
        (lambda text: text.replace("34.5", "44.5"), "its digest does not fit, it was edited"),
        (lambda text: text.replace('"ok"', '"best"'), "its digest does not fit"),
    ],
)
def test_a_damaged_file_is_one_warning_and_a_missing_cell(store, lines, damage, reason):
    store.put(OK)
    path = store.path(CELL.key)
    path.write_text(damage(path.read_text()))
    assert store.rows() == ()
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert reason in lines[0]
    assert "its cell counts as missing; moved to rows/aside/" in lines[0]
    assert not path.exists()
    assert store.rows() == ()
    assert len(lines) == 1
    store.put(OK)
    assert store.rows() == (OK,)


def test_binary_rubbish_is_a_warning_too(store, lines):
    store.put(OK)
    store.path(CELL.key).write_bytes(b"\xff\xfe\x00garbage")
    assert store.rows() == ()
    assert "it is no text" in lines[0]


def test_a_row_under_a_foreign_name_is_moved_aside(store, lines):
    store.put(OK)
    os.rename(store.path(CELL.key), store.path("0123456789abcdef"))
    assert store.rows() == ()
    assert f"it holds the row {CELL.key}" in lines[0]


def test_a_row_of_a_later_schema_is_said_to_be_one(store, lines):
    from quantarena.bench.store import digest

    document = {**OK.to_dict(), "schema_version": 99}
    store.rows_folder.mkdir(parents=True)
    text = json.dumps({**document, "digest": digest(document)})
    store.path(CELL.key).write_text(text)
    assert store.rows() == ()
    assert "schema version 99" in lines[0]


def test_two_damaged_files_of_one_name_are_both_kept(store):
    for text in ("one", "two"):
        store.rows_folder.mkdir(parents=True, exist_ok=True)
        store.path(CELL.key).write_text(text)
        store.rows()
    assert len(list((store.rows_folder / "aside").iterdir())) == 2


def test_numbers_that_are_not_finite(store):
    endless = replace(OK.measurements[0], value=float("inf"), high=float("nan"))
    wide = replace(OK.measurements[0], name="ssim", high=float("inf"))
    stored = store.put(replace(OK, measurements=(endless, wide)))
    assert stored.measurement("psnr").value is None
    assert stored.measurement("psnr").reason == "not finite (inf)"
    assert (stored.measurement("ssim").value, stored.measurement("ssim").high) == (34.5, None)
    assert store.rows() == (stored,)


@pytest.mark.parametrize("odd", [float("nan"), object()])
def test_what_json_cannot_hold_makes_a_failed_row(store, odd):
    stored = store.put(replace(OK, calibration={"scale": [1.0, odd]}))
    assert stored.status is Status.FAILED
    assert "the result holds" in stored.reason
    assert store.rows() == (stored,)


def test_a_reader_never_sees_half_a_row(store, monkeypatch):
    from quantarena.bench import files

    store.put(OK)

    def fail(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        store.amend(replace(OK, peak_bytes=5))
    assert store.get(CELL.key) == OK
    assert [path.name for path in store.rows_folder.iterdir()] == [f"{CELL.key}.json"]


def hold(folder, started, release):
    with Store(folder).lock():
        started.set()
        release.wait(30)


def test_the_lock_of_a_living_process_holds_and_that_of_a_dead_one_does_not(store):
    context = multiprocessing.get_context("fork")
    started, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(store.folder, started, release))
    other.start()
    assert started.wait(10)
    with pytest.raises(UserError, match=rf"another run is writing to .* \(process {other.pid} on"):
        store.lock().__enter__()
    other.kill()
    other.join()
    with store.lock():
        assert json.loads((store.folder / ".lock").read_text())["pid"] == os.getpid()
    with store.lock():
        pass


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*Not a directory; choose a writable place"):
        Store(tmp_path / "file" / "quick").put(OK)


def test_the_plan_of_a_folder(store, lines):
    assert store.read_planned() is None
    planned = Planned("Quick", "./run_all.sh quick", (CELL, replace(CELL, budget=Budget(images=9))))
    store.write_planned(planned)
    assert store.read_planned() == planned
    (store.folder / "plan.json").write_text("{")
    assert store.read_planned() is None
    assert "plan.json is damaged and ignored" in lines[0]


def test_retired_rows_are_kept_out_of_the_way(store):
    store.put(OK)
    store.retire([OK])
    assert store.rows() == ()
    assert len(list((store.rows_folder / "earlier").iterdir())) == 1
    assert store.put(OK).attempt == 2
