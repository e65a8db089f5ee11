"""Serial-to-Parallel: seconds to quantize, and latency of one packed step."""

import pytest

WIDTHS = ["w4a8", "w4a4"]


@pytest.mark.parametrize("bits", WIDTHS)
def test_quantize(benchmark, bench, cell_of, bits):
    model = bench.time_quantize(benchmark, cell_of("serial_to_parallel", bits))
    assert model.layers


@pytest.mark.parametrize("bits", WIDTHS)
def test_packed_step(benchmark, bench, cell_of, quantized, bits):
    cell = cell_of("serial_to_parallel", bits)
    bench.time_step(benchmark, cell, quantized(cell))
    assert benchmark.extra_info["ratio_to_fp32"] > 0
