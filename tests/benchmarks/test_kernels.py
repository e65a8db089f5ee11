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


@pytest.fixture(scope="module")
def functions():
    """Disassembly of every function of the library by its demangled name; units share names."""
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump")
    library = Path(native.__file__).with_name(native.LIBRARY_NAME)
    if not library.exists():
        pytest.skip("needs the native library")
    command = ["objdump", "-dC", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [re.match(r"\w+ <(.*)>:\n(.*)", body, re.DOTALL) for body in text.split("\n\n")]
    return [(match[1], match[2]) for match in found if match]


def test_micro_kernels_keep_their_accumulators_in_registers(functions):
    """Spilled accumulators show as many 256-bit stack accesses in a micro-kernel."""
    stack = {}
    for name, body in functions:
        found = re.search(r"Avx2::((?:dense|planar)<\w+, [46](?:, \w+)?>)\(unsigned char", name)
        if found and re.search(r"vpmadd", body):
            stack[found[1]] = len(re.findall(r"%ymm.*\(%r[sb]p|\(%r[sb]p.*%ymm", body))
    if not stack and "avx2" not in native.load().status.available:
        pytest.skip("needs the AVX2 unit")
    assert len(stack) >= 8
    assert max(stack.values()) <= 8, stack


def loops(body):
    """Instructions of each innermost loop of a function: from the target of a jump back to it."""
    lines = re.findall(r"^ *([0-9a-f]+):\s+(\S.*)$", body, re.MULTILINE)
    at = [int(address, 16) for address, _ in lines]
    found = []
    for end, (address, text) in enumerate(lines):
        jump = re.match(r"j\w+ +([0-9a-f]+) ", text)
        if jump and at[0] <= int(jump[1], 16) < int(address, 16):
            found.append([text for _, text in lines[at.index(int(jump[1], 16)) : end + 1]])
    inner = [loop for loop in found if sum(set(other) < set(loop) for other in found) == 0]
    return inner or found


WIDE_KERNELS = {
    r"pair_tile<8, 2>": (2 * 16, 2 * 8),
    r"pair_tile<8, 1>": (8, 8),
    r"pair_tile<4, 2>": (2 * 8, 2 * 4),
    r"plane_tile<16, 0>": (2 * 16, 0),
    r"plane_tile<16, 1>": (2 * 16, 0),
    r"plane_tile<16, 2>": (2 * 16, 0),
}
"""Dot products and broadcasts in a round of the loop: two steps of K, or one of a single panel."""


@pytest.mark.parametrize("kernel", WIDE_KERNELS)
def test_wide_micro_kernels_do_nothing_but_multiply(functions, kernel):
    """No spill, no copy of a register, no broadcast from a general register in the loop over K."""
    bodies = [body for name, body in functions if f"512::{kernel}(" in name]
    if not bodies:
        pytest.skip("the compiler left the 512-bit units out")
    for body in bodies:
        hot = [loop for loop in loops(body) if any("vpdpbusd" in line for line in loop)]
        assert len(hot) == 1
        products, broadcasts = WIDE_KERNELS[kernel]
        assert sum("vpdpbusd" in line for line in hot[0]) == products
        assert sum("vpbroadcastd" in line for line in hot[0]) == broadcasts
        waste = [
            line
            for line in hot[0]
            if re.search(r"\(%r[sb]p", line)
            or re.match(r"vmov\w+ +%[xyz]mm\d+,%[xyz]mm\d+$", line)
            or re.match(r"vpbroadcastd +%[er]", line)
        ]
        assert not waste
