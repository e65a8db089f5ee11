"""Rows of earlier schema versions load; later ones and damaged ones are refused by name."""

import dataclasses
import json
from pathlib import Path

import pytest

from quantarena.bench.migrate import STEPS, migrate
from quantarena.bench.schema import SCHEMA_VERSION, Row, Status
from quantarena.bench.store import Store, parse_row
from quantarena.bench.target import DEFAULT_TARGET

ROWS = Path(__file__).parent / "rows"
JOINED = ("code_bits", "bops", "fp_bops", "branch_macs", "attention")


@pytest.fixture
def version_1():
    """A row that version 1 wrote: RTN at w4a8 on the CIFAR-10 model, three sampler steps."""
    return json.loads((ROWS / "version-1.json").read_text())


def test_there_is_a_step_from_every_earlier_version():
    assert sorted(STEPS) == list(range(1, SCHEMA_VERSION))


def test_a_row_of_version_1_loads(version_1):
    row = parse_row((ROWS / "version-1.json").read_text())
    assert row.schema_version == SCHEMA_VERSION
    assert (row.status, row.backend, row.cell.bits) == (Status.OK, "packed", "w4a8")
    assert row.measurement("psnr").value == 26.022273272815553
    assert row.measurement("kid/effnet-lite0").reason.startswith("needs at least 16")
    assert (row.observed.layers, row.observed.bops) == (64, 10133045248)
    assert row.latency.ratio == 1.6178142543869125
    assert row.warnings == ("calibrated on all 24 points recorded; 64 were asked",)
    version_1.pop("digest")
    version_1["cell"]["options"] = []  # options of methods joined later; none is the default
    version_1["cell"]["budget"]["range_samples"] = 0  # ranges had no budget of their own
    version_1["cell"]["budget"]["latency_batches"] = []
    version_1["cell"]["target"] = dataclasses.asdict(DEFAULT_TARGET)
    version_1 |= {"device": None, "latency_by_batch": []}
    version_1["latency"]["step"] = None
    assert json.loads(json.dumps(row.to_dict())) == version_1 | {"schema_version": SCHEMA_VERSION}


def test_what_the_first_rows_of_version_1_lack_is_unknown(version_1):
    for name in JOINED:
        del version_1["observed"][name]
    del version_1["digest"]
    row = Row.from_dict(version_1)
    assert [getattr(row.observed, name) for name in JOINED] == [None] * len(JOINED)
    assert row.observed.packed_bytes == 645298
    version_1["observed"] = None
    assert Row.from_dict(version_1).observed is None


def test_an_old_row_is_written_back_in_the_present_version(tmp_path, version_1):
    store = Store(tmp_path)
    path = store.path(version_1["key"])
    path.parent.mkdir()
    path.write_text((ROWS / "version-1.json").read_text())
    (row,) = store.rows()
    store.amend(row)
    assert json.loads(path.read_text())["schema_version"] == SCHEMA_VERSION
    assert store.rows() == (row,)


def test_migrating_changes_no_document_in_place(version_1):
    before = json.dumps(version_1)
    migrate(version_1, SCHEMA_VERSION)
    assert json.dumps(version_1) == before


@pytest.mark.parametrize("version", [None, 0, -1, "1", 1.0, True])
def test_a_version_that_never_was(version_1, version):
    with pytest.raises(ValueError, match="no version of ours"):
        migrate({**version_1, "schema_version": version}, SCHEMA_VERSION)


def test_a_later_version_is_refused_in_one_line(version_1):
    later = SCHEMA_VERSION + 1
    line = rf"^row has schema version {later}, but this quantarena reads up to {SCHEMA_VERSION}"
    with pytest.raises(ValueError, match=line):
        Row.from_dict({**version_1, "schema_version": later})


def edited(version_1, where, value):
    """The document with one field set, or taken out where the value is ``...``."""
    del version_1["digest"]
    target = version_1
    *path, name = where
    for step in path:
        target = target[step]
    if value is ...:
        del target[name]
    else:
        target[name] = value
    return version_1


@pytest.mark.parametrize(
    ("where", "value", "line"),
    [
        (["colour"], 1, "unknown field colour"),
        (["status"], ..., "missing field status"),
        (["status"], "best", "status should be 'ok', 'failed'"),
        (["cell", "budget", "image"], 1, "unknown field cell.budget.image"),
        (["measurements", 2, "value"], "low", "measurements[2].value should be a valid number"),
        (["latency", "step_ms"], ..., "missing field latency.step_ms"),
        (["observed", "layers"], 6.5, "observed.layers should be a valid integer, not 6.5"),
        (["cell", "seed"], 1, "does not belong to its cell"),
    ],
)
def test_a_damaged_row_is_one_line_with_its_file_and_field(tmp_path, version_1, where, value, line):
    from quantarena.bench.store import digest

    lines = []
    store = Store(tmp_path, lines.append)
    path = store.path(version_1["key"])
    document = edited(version_1, where, value)
    path.parent.mkdir()
    path.write_text(json.dumps({**document, "digest": digest(document)}))
    assert store.rows() == ()
    (said,) = lines
    assert str(path) in said
    assert line in said
    assert "\n" not in said
