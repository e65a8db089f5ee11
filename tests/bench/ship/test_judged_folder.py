"""A folder that is quantized already becomes a row beside methods, scored as it is."""

import json

import pytest

from quantarena.bench.cli.main import run

FAST = ("--samples", "4", "--calibration-images", "2", "--iterations", "1", "--steps", "2")


@pytest.fixture(scope="module")
def rows(pixel_folder, tmp_path_factory):
    """The rows of a run with an export of ``rtn`` and ``rtn`` itself, by method."""
    place = tmp_path_factory.mktemp("judged")
    export = place / "export"
    words = ["quantize", str(pixel_folder), "--method", "rtn", "--bits", "w4a8", "-o", str(export)]
    assert run([*words, *FAST, "--cache", str(place / "cache"), "-q"]) == 0
    words = ["run", "smoke", "--workload", str(pixel_folder), "--method", "rtn,folder"]
    words += ["--bits", "w4a8", "--option", f"folder.path={export}", "--images", "8"]
    words += ["--range-samples", "4", *FAST, "--executor", "local", "--results", str(place / "r")]
    assert run([*words, "--name", "judged"]) == 0
    found = [json.loads(f.read_text()) for f in (place / "r" / "judged" / "rows").glob("*.json")]
    return {row["cell"]["method"]: row for row in found}


def test_the_row_is_ok_and_says_what_ran(rows):
    row = rows["folder"]
    assert row["status"] == "ok", row["reason"]
    assert row["observed"]["weight_bits"] == rows["rtn"]["observed"]["weight_bits"]
    assert row["observed"]["packed_bytes"] == rows["rtn"]["observed"]["packed_bytes"]
    assert row["latency"]["ratio"] > 0


def test_what_an_export_draws_is_what_its_method_draws(rows):
    by_name = [
        {m["name"]: m["value"] for m in rows[name]["measurements"]} for name in ("folder", "rtn")
    ]
    # the export found its ranges on as many points, from the same recording
    assert by_name[0]["psnr"] == pytest.approx(by_name[1]["psnr"], abs=0.5)
