import json
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from quantarena.methods.timing import cases, kernels
from quantarena.methods.timing.rivals import NAMES, SCALE, ZERO, rivals


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


@pytest.mark.slow
@pytest.mark.parametrize("shape", [("linear", (5, 32, 16)), ("conv2d", (2, 8, 4, 16))])
def test_bfloat16_layers_compute_the_layer(monkeypatch, shape):
    """Also where the processor has no such arithmetic, though nobody wants their times there."""
    monkeypatch.setattr("quantarena.methods.timing.rivals.computes_bf16", lambda: True)
    case = cases.Case(*shape)
    weight = cases.gaussian_layer(case, 8, 8)[1]
    x = cases.example_input(case)
    layer = F.linear if case.kind == "linear" else partial(F.conv2d, padding=1)
    found, want = rivals(case, weight, x), layer(x, weight)
    for name in ("bf16", "compiled bf16"):
        made = found[name]()
        assert made.dtype == torch.bfloat16
        assert 0 < float((made.float() - want).norm() / want.norm()) < 0.01


def test_rivals_compute_the_layer():
    """Outputs are rounded to integers around a zero point, as the rivals do themselves."""
    for shape in (("linear", (5, 32, 16)), ("conv2d", (2, 8, 4, 16))):
        case = cases.Case(*shape)
        weight = cases.gaussian_layer(case, 8, 8)[1]
        x = cases.example_input(case)
        layer = F.linear if case.kind == "linear" else partial(F.conv2d, padding=1)
        want = layer(x, weight)
        found_here = rivals(case, weight, x)
        assert set(found_here) <= set(NAMES)
        for name, run in found_here.items():
            found = run()
            found = torch.as_tensor(found[0] if isinstance(found, list) else found)
            if name in ("torch int8", "onnxruntime"):
                low = 0 if name == "torch int8" else -128
                assert float((found - want.clamp(low, 127)).abs().mean()) < 0.5  # a few saturate
                continue
            # eight bits of each side, bfloat16 and float32: relative error of the whole
            if name == "openvino int8":
                inside = x.clamp(-ZERO * SCALE, (255 - ZERO) * SCALE)
                want = layer(inside, weight)
            limit = {"openvino int8": 0.03, "openvino fp32": 1e-5}.get(name, 0.01)
            assert float((found.float() - want).norm() / want.norm()) < limit
