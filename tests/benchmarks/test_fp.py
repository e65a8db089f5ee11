"""Full precision: the wrap that changes nothing, and latency of one step."""


def test_quantize(benchmark, bench, cell_of):
    model = bench.time_quantize(benchmark, cell_of("fp", "fp"))
    assert not model.layers


def test_step(benchmark, bench, cell_of, quantized):
    cell = cell_of("fp", "fp")
    bench.time_step(benchmark, cell, quantized(cell))
    low, high = benchmark.extra_info["ratio_interval"]
    assert low <= 1.25
    assert high >= 0.8
