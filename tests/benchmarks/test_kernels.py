"""Packed layers against fp32: ``pytest tests/benchmarks/test_kernels.py --benchmark-only``.

The ratio floors are far below what the kernels reach on a quiet machine (docs/kernels.md): they
catch a compiler that undoes the micro-kernels, not a percent of noise.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from quantarena.methods.core.kernels import native
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.timing import cases, kernels

FLOOR = {"avx2": {"w8a8": 1.1, "w4a8": 1.6, "w2a8": 1.6, "w4a4": 1.6}}


@pytest.mark.parametrize("case", cases.cases(), ids=lambda case: case.name)
@pytest.mark.parametrize("bits", cases.BITS, ids=lambda bits: "w{}a{}".format(*bits))
def test_layer(benchmark, case, bits):
    x = cases.example_input(case)
    module = PackedLayer(cases.gaussian_layer(case, *bits)[0])
    name = "w{}a{}".format(*bits)
    benchmark.group = case.name
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            benchmark(module, x)
        timing = kernels.measure(case, [bits], rounds=5)
    finally:
        torch.set_num_threads(threads)
    status = native.status()
    benchmark.extra_info.update(
        shape=case.name,
        bits=name,
        backend=status.backend,
        isa=status.isa,
        packed_bytes=module.packed_bytes,
        fp32_seconds=timing.base,
        ratio=timing.ratio(name),
        roofline_share=timing.roofline[name].seconds / timing.best(name),
    )


def test_no_regression(benchmark):
    """The geometric mean over three shapes stays above a floor."""
    floors = FLOOR.get(native.status().isa)
    if floors is None:
        pytest.skip(f"no floor for {native.status().isa}")
    bits = [(8, 8), (4, 8), (2, 8), (4, 4)]
    chosen = [
        case for case in cases.cases() if case.name in ("lin 256x320x320", "lin 4096x128x128")
    ]
    chosen += [case for case in cases.cases() if case.name.startswith("conv 1x64")]
    timings = benchmark.pedantic(lambda: [kernels.measure(case, bits) for case in chosen], rounds=1)
    means = {name: kernels.geomean(t.ratio(name) for t in timings) for name in floors}
    benchmark.extra_info.update(means)
    slow = {name: mean for name, mean in means.items() if mean < floors[name]}
    assert not slow, f"slower than the floor: {slow}"


def test_micro_kernels_keep_their_accumulators_in_registers(benchmark):
    """Spilled accumulators show as many 256-bit stack accesses in a micro-kernel."""
    if "avx2" not in native.load().status.available or shutil.which("objdump") is None:
        pytest.skip("needs the AVX2 unit and objdump")
    library = Path(native.__file__).with_name(native.LIBRARY_NAME)
    command = ["objdump", "-dC", "--no-show-raw-insn", str(library)]
    text = benchmark.pedantic(
        lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout, rounds=1
    )
    stack = {}
    for body in text.split("\n\n"):
        found = re.search(r"Avx2::((?:dense|planar)<\w+, [46](?:, \w+)?>)\(unsigned char", body)
        if found and re.search(r"vpmadd", body):
            stack[found[1]] = len(re.findall(r"%ymm.*\(%r[sb]p|\(%r[sb]p.*%ymm", body))
    assert len(stack) >= 8
    assert max(stack.values()) <= 8, stack
