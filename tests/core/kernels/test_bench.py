import json

from quantarena.methods.core.kernels import bench, bench_cases


def test_case_counts_its_work():
    conv = bench_cases.Case("conv2d", (2, 8, 4, 16))
    assert conv.products == 2 * 8 * 16 * 9 * 16
    assert (conv.inputs, conv.outputs) == (2 * 8 * 16, 2 * 16 * 16)
    linear = bench_cases.Case("linear", (5, 7, 11))
    assert (linear.products, linear.inputs, linear.outputs) == (385, 35, 55)


def test_table_and_json(tmp_path, capsys, monkeypatch):
    small = [bench_cases.Case("linear", (4, 32, 16)), bench_cases.Case("conv2d", (1, 4, 4, 8))]
    monkeypatch.setattr(bench, "cases", lambda: small)
    monkeypatch.setattr(bench, "bandwidth", lambda size, threads: 1e10)
    monkeypatch.setattr(bench, "ceiling", lambda pair: 1e11)
    target = tmp_path / "kernels.json"
    assert bench.main(["--rounds", "1", "--bits", "8a8,4a8", "--json", str(target)]) == 0
    text = capsys.readouterr().out
    assert "lin 4x32x16" in text
    assert "geometric mean" in text
    assert "inexact on AVX2" in text
    rows = json.loads(target.read_text())
    assert [row["name"] for row in rows] == [case.name for case in small]
    assert rows[1]["packed"].keys() == {"w8a8", "w8a8/last", "w4a8", "w4a8/last"}
