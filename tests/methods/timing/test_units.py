import json
import math

import pytest

from quantarena.methods.core.kernels import native
from quantarena.methods.timing import cases, kernels, units

NAMES = [name for name in native.load().status.available if name != "scalar"]
pytestmark = pytest.mark.skipif(not NAMES, reason="needs a unit besides the portable one")


def test_peaks_are_those_of_a_processor():
    found = units.peaks([*NAMES, "scalar"], rounds=9)
    assert set(found) == {*NAMES, "scalar"}
    assert math.isnan(found["scalar"].resident)
    for name in NAMES:
        assert 1e9 < found[name].cached < 1e13
        # registers are not slower than the cache but for what a busy machine does in between
        assert math.isnan(found[name].resident) or found[name].resident > 0.5 * found[name].cached
    pairs = units.peaks([*NAMES, "scalar"], pair=True, rounds=1)
    assert set(pairs) == {*NAMES, "scalar"} & native.PAIRS


def test_shares_are_of_the_peak_of_the_form_that_ran():
    case = cases.Case("linear", (4, 32, 16))
    timing = units.UnitTiming(case, "w8a8", 8e-6, {"a": 2e-6, "b": 4e-6}, frozenset({"b"}))
    rate = case.products / 4e-6
    found = {
        False: {"a": units.Peak(case.products / 1e-6, 1.0)},
        True: {"b": units.Peak(math.nan, 4 * rate)},
    }
    lines = units.table([timing], found).splitlines()
    assert lines[1].split()[-4:] == ["4.00", "50%", "2.00", "25%"]
    assert lines[2].split() == ["geometric", "mean", "4.00", "2.00"]


def test_units_are_compared_in_one_table(tmp_path, capsys, monkeypatch):
    small = [cases.Case("linear", (4, 32, 16)), cases.Case("conv2d", (1, 4, 4, 8))]
    monkeypatch.setattr(kernels, "cases", lambda: small)
    monkeypatch.setattr(kernels, "bandwidth", lambda size, threads: 1e10)
    monkeypatch.setattr(kernels, "ceiling", lambda pair: 1e11)
    target = tmp_path / "kernels.json"
    wanted = [*NAMES[:1], "scalar"]
    options = ["--rounds", "1", "--bits", "8a8", "--unit-bits", "4a8", "--json", str(target)]
    assert kernels.main([*options, "--units", ",".join(wanted)]) == 0
    text = capsys.readouterr().out
    assert "share of the peak" in text
    assert f"peak of {wanted[0]}, 4 k per step" in text
    rows = json.loads(target.read_text())
    assert all(set(row["units"]["w4a8"]) == set(wanted) for row in rows)
    assert {peak["unit"] for peak in rows[0]["peaks"]} == set(wanted)
