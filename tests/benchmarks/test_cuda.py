"""CUDA kernels against bfloat16, on a GPU (``--benchmark-only``).

Layers against cuBLAS, whole network steps (one CUDA graph) against the compiled network.  Ratios
are printed as they are, below 1 included; only the large product has a floor.
"""

from dataclasses import asdict

import pytest
import torch

from quantarena.methods.core.cuda.device import status
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.timing.cases import cases

REASON = status().reason
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(REASON), reason=f"CUDA kernels have nothing to run on: {REASON}"),
]
FLOOR = 1.3
"""W8A8 against cuBLAS bfloat16 at M = N = K = 4096 on a Hopper GPU."""


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (3, 8), (2, 8)], ids="w{0[0]}a{0[1]}".format)
@pytest.mark.parametrize("case", [None, *cases()], ids=lambda c: c.name if c else "lin 4096^3")
def test_layer(benchmark, case, bits):
    from quantarena.methods.timing import cuda

    case = case or cuda.SQUARE
    benchmark.group = case.name
    with torch.inference_mode():
        row = benchmark.pedantic(
            cuda.measure,
            (case, bits, cuda.graph_times, "cuda"),
            {"tune": True},
            rounds=1,
        )
    benchmark.extra_info.update(asdict(row), ratio=row.ratio, gpu=status().device)
    if case == cuda.SQUARE and bits == (8, 8) and status().capability == (9, 0):
        assert row.ratio >= FLOOR


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])
def test_step(benchmark, bench, cell_of, quantized, bits, batch):
    from quantarena.methods.timing.cuda import measure_step

    model = quantized(cell_of("rtn", bits))
    rows = torch.arange(batch) % bench.recorded.rows
    points = bench.recorded.pick(torch.zeros_like(rows), rows)
    arguments = (bench.workload, bits, pack(model), bench.workspace.loaded.denoiser, points)
    row = benchmark.pedantic(measure_step, arguments, rounds=1)
    benchmark.extra_info.update(asdict(row), ratio=row.ratio, gpu=status().device)
    assert row.ratio > 0
