"""Every built-in method: seconds to quantize, and latency of one packed step."""

import pytest

from quantarena.methods.builtin import FP, builtins

METHODS = [method for method in builtins().values() if not method.rival]
CASES = [(method.name, bits) for method in METHODS for bits in method.board_bits[:3]]


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_quantize(benchmark, bench, cell_of, name, bits):
    model = bench.time_quantize(benchmark, cell_of(name, bits))
    assert model.layers


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_packed_step(benchmark, bench, cell_of, quantized, name, bits):
    cell = cell_of(name, bits)
    bench.time_step(benchmark, cell, quantized(cell))
    assert benchmark.extra_info["ratio_to_fp32"] > 0


def test_quantize_full_precision(benchmark, bench, cell_of):
    model = bench.time_quantize(benchmark, cell_of(FP, "fp"))
    assert not model.layers


def test_full_precision_step(benchmark, bench, cell_of, quantized):
    cell = cell_of(FP, "fp")
    bench.time_step(benchmark, cell, quantized(cell))
    low, high = benchmark.extra_info["ratio_interval"]
    assert low <= 1.25
    assert high >= 0.8
