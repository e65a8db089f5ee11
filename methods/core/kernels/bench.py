"""Speed of packed layers against fp32: ``python -m quantarena.methods.core.kernels.bench``.

Every ratio is fp32 time over packed time, measured interleaved in one process, with activation
quantization and layout included, against the faster of contiguous and channels_last fp32.  With one
thread the clock is the process's CPU time and the statistic the median; with more it is wall time
and the minimum, because a preempted run says nothing about the kernels.
"""

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.bench_cases import (
    BITS,
    Case,
    Timing,
    cases,
    example_input,
    gaussian_layer,
)
from quantarena.methods.core.kernels.packed import PackedLayer

Run = Callable[[], object]


def interleave(runs: dict[str, Run], rounds: int, threads: int) -> dict[str, float]:
    """Times every run once per round, so that a change of the machine's load meets all alike."""
    clock = time.process_time if threads == 1 else time.perf_counter
    repeats, samples = {}, {name: list[float]() for name in runs}
    for name, run in runs.items():
        run()
        start = clock()
        run()
        repeats[name] = max(1, int(0.02 / max(clock() - start, 1e-6)))
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            for _ in range(repeats[name]):
                run()
            samples[name].append((clock() - start) / repeats[name])
    if threads > 1:
        return {name: min(times) for name, times in samples.items()}
    return {name: sorted(times)[len(times) // 2] for name, times in samples.items()}


def _torch_int8(case: Case, weight: Tensor, x: Tensor) -> Run | None:
    """Torch's static x86 int8 layer from fp32 to fp32, or None where this build lacks it."""
    ops: Any = torch.ops.quantized
    scale = weight.flatten(1).abs().amax(dim=1).double() / 127
    zero = torch.zeros(weight.shape[0], dtype=torch.int64)
    try:
        torch.backends.quantized.engine = "x86"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces the removal of these types
            w = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
            torch.quantize_per_tensor(x, 0.03, 128, torch.quint8)
            if case.kind == "linear":
                packed, layer = ops.linear_prepack(w, None), ops.linear
            else:
                packed = ops.conv2d_prepack(w, None, [1, 1], [1, 1], [1, 1], 1)
                layer = ops.conv2d
    except (RuntimeError, AttributeError):
        return None

    def run() -> object:
        codes = torch.quantize_per_tensor(x, 0.03, 128, torch.quint8)
        return layer(codes, packed, 1.0, 0).dequantize()

    return run


def ceiling(pair: bool) -> float:
    """Multiply-accumulates per second of the micro-kernel alone, on one thread."""
    peak = native.library().peak
    if peak is None:
        return math.nan
    units, best = 24, math.inf
    for _ in range(15):
        start = time.process_time()
        peak(int(pair), units, 4000)
        best = min(best, time.process_time() - start)
    return 4000 * 96 * units * 16 / best


def bandwidth(size: int, threads: int) -> float:
    """Bytes per second at which this much data moves, from whatever level of memory holds it.

    Args:
        size: bytes that a layer must move.
        threads: torch threads in use; picks the clock as in :func:`interleave`.

    Returns:
        The better of a copy (read and write) and a sum (read).
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    source = torch.ones(max(size // 8, 4096))
    target = torch.empty_like(source)
    repeats = max(1, (1 << 24) // source.numel())
    rates = []
    moves: list[tuple[Run, int]] = [(lambda: target.copy_(source), 8), (source.sum, 4)]
    for run, factor in moves:
        best = math.inf
        for _ in range(5):
            start = clock()
            for _ in range(repeats):
                run()
            best = min(best, clock() - start)
        rates.append(factor * source.numel() * repeats / best)
    return max(rates)


def measure(
    case: Case, bits: Iterable[tuple[int, int]] = BITS, rounds: int = 9, threads: int = 1
) -> Timing:
    """Times one case in fp32 and packed, both memory formats for convolutions.

    Args:
        case: the layer.
        bits: pairs of weight and activation bits.
        rounds: samples per contestant.
        threads: torch threads; restored afterwards.

    Returns:
        The timing, with the share of the roofline that each width reached.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return _measure(case, list(bits), rounds, threads)
    finally:
        torch.set_num_threads(before)


def _measure(case: Case, bits: list[tuple[int, int]], rounds: int, threads: int) -> Timing:
    x = example_input(case)
    layer, weight = gaussian_layer(case, 8, 8)
    bias, runs = layer.bias, dict[str, Run]()
    modules = {f"w{w}a{a}": PackedLayer(gaussian_layer(case, w, a)[0]) for w, a in bits}
    if case.kind == "linear":
        runs["fp32"] = lambda: functional.linear(x, weight, bias)
        inputs = {"": x}
    else:
        last = x.contiguous(memory_format=torch.channels_last)
        weight_last = weight.contiguous(memory_format=torch.channels_last)
        runs["fp32"] = lambda: functional.conv2d(x, weight, bias, padding=1)
        runs["fp32/last"] = lambda: functional.conv2d(last, weight_last, bias, padding=1)
        inputs = {"": x, "/last": last}
    for name, module in modules.items():
        for suffix, tensor in inputs.items():
            runs[name + suffix] = partial(module, tensor)
    int8 = _torch_int8(case, weight, x)
    if int8 is not None:
        runs["torch int8"] = int8
    times = interleave(runs, rounds, threads)
    timing = Timing(case, {k: v for k, v in times.items() if k.startswith("fp32")})
    timing.torch_int8 = times.get("torch int8")
    timing.packed = {k: v for k, v in times.items() if k.split("/")[0] in modules}
    for name, module in modules.items():
        moved = module.packed_bytes + 4 * (case.inputs + case.outputs)
        compute = case.products / (ceiling(module.uses_pairs) * threads)
        best = min(t for k, t in timing.packed.items() if k.split("/")[0] == name)
        timing.share[name] = max(compute, moved / bandwidth(moved, threads)) / best
        timing.macs_per_byte[name] = case.products / moved
    return timing


def geomean(values: Iterable[float]) -> float:
    """Geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def table(timings: list[Timing], bits: list[tuple[int, int]]) -> str:
    """The results as text, one line per shape and one of geometric means."""
    names = [f"w{w}a{a}" for w, a in bits]
    head = f"{'shape':24}{'fp32 ms':>9}" + "".join(f"{n:>8}" for n in names) + f"{'int8*':>8}"
    lines = [head]
    for t in timings:
        int8 = f"{t.base / t.torch_int8:8.2f}" if t.torch_int8 else f"{'-':>8}"
        ratios = "".join(f"{t.ratio(n):8.2f}" for n in names)
        lines.append(f"{t.case.name:24}{t.base * 1e3:9.3f}{ratios}{int8}")
        reached = "".join(f"{t.share[n]:8.0%}" for n in names)
        lines.append(f"{'  share of roofline':33}{reached}")
    means = "".join(f"{geomean(t.ratio(n) for t in timings):8.2f}" for n in names)
    lines.append(f"{'geometric mean':33}{means}")
    lines.append("* torch x86 int8, inexact on AVX2: 8-bit products saturate there")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line; prints the table and writes JSON where asked."""
    parser = argparse.ArgumentParser(prog="quantarena.methods.core.kernels.bench")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--bits", default=",".join(f"{w}a{a}" for w, a in BITS))
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    bits = [(int(b.split("a")[0]), int(b.split("a")[1])) for b in options.bits.split(",")]
    status = native.status()
    sys.stdout.write(f"{status.backend} kernels, {status.isa}, {options.threads} thread(s)\n")
    timings = []
    for case in cases():
        if options.only in case.name:
            timings.append(measure(case, bits, options.rounds, options.threads))
            sys.stderr.write(f"{case.name} done\n")
    sys.stdout.write(table(timings, bits) + "\n")
    for pair, name in ((False, "4 k per step"), (True, "2 k per step")):
        sys.stdout.write(f"ceiling of the micro-kernel, {name}: {ceiling(pair) / 1e9:.0f} GMAC/s\n")
    if options.json:
        rows = [{**asdict(t), "name": t.case.name, "status": asdict(status)} for t in timings]
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
