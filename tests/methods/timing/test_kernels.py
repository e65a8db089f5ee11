import json

import torch
from torch.nn import functional as F

from quantarena.methods.timing import cases, kernels
from quantarena.methods.timing.rivals import rivals


def test_case_counts_its_work():
    conv = cases.Case("conv2d", (2, 8, 4, 16))
    assert conv.products == 2 * 8 * 16 * 9 * 16
    assert (conv.inputs, conv.outputs) == (2 * 8 * 16, 2 * 16 * 16)
    linear = cases.Case("linear", (5, 7, 11))
    assert (linear.products, linear.inputs, linear.outputs) == (385, 35, 55)


def test_table_and_json(tmp_path, capsys, monkeypatch):
    small = [cases.Case("linear", (4, 32, 16)), cases.Case("conv2d", (1, 4, 4, 8))]
    monkeypatch.setattr(kernels, "cases", lambda: small)
    monkeypatch.setattr(kernels, "bandwidth", lambda size, threads: 1e10)
    monkeypatch.setattr(kernels, "ceiling", lambda pair: 1e11)
    target = tmp_path / "kernels.json"
    assert kernels.main(["--rounds", "1", "--bits", "8a8,4a8", "--json", str(target)]) == 0
    text = capsys.readouterr().out
    assert "lin 4x32x16" in text
    assert "geometric mean" in text
    assert "inexact on AVX2" in text
    rows = json.loads(target.read_text())
    assert [row["name"] for row in rows] == [case.name for case in small]
    assert "share" in text
    assert rows[0]["roofline"]["w4a8"]["products"] == 4 * 32 * 16
    assert rows[0]["share"]["w4a8"] > 0
    assert rows[1]["packed"].keys() == {
        name + suffix for name in ("w8a8", "w4a8", kernels.MIXED) for suffix in ("", "/last")
    }


def test_roofline_is_the_slower_of_arithmetic_and_memory():
    assert cases.Roofline(100, 10, rate=50, bandwidth=100).seconds == 2
    assert cases.Roofline(100, 1000, rate=50, bandwidth=100).seconds == 10


def test_rivals_compute_the_layer():
    """Outputs are rounded to integers around a zero point, as the rivals do themselves."""
    for shape in (("linear", (5, 32, 16)), ("conv2d", (2, 8, 4, 16))):
        case = cases.Case(*shape)
        weight = cases.gaussian_layer(case, 8, 8)[1]
        x = cases.example_input(case)
        want = x @ weight.t() if case.kind == "linear" else F.conv2d(x, weight, padding=1)
        for name, run in rivals(case, weight, x).items():
            found = run()
            found = torch.as_tensor(found[0] if isinstance(found, list) else found)
            want_here = want.clamp(0 if name == "torch int8" else -128, 127)
            assert float((found - want_here).abs().mean()) < 0.5  # a few saturate inside
