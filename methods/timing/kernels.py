"""Times packed layers against fp32: ``python -m quantarena.methods.timing.kernels``.

Every ratio is fp32 time over packed time, measured interleaved in one process, with activation
quantization and layout included, against the faster of contiguous and channels_last fp32.  With one
thread the clock is the process's CPU time (the wall's where that one is coarse) and the statistic
the median; with more it is wall time
and the minimum, because a preempted run says nothing about the kernels.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from quantarena.methods.core.kernels import native
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.timing import units
from quantarena.methods.timing.cases import (
    BITS,
    MIXED,
    Case,
    Roofline,
    Timing,
    cases,
    example_input,
    gaussian_layer,
    mixed_layer,
)
from quantarena.methods.timing.clock import thread_clock
from quantarena.methods.timing.interleave import interleave
from quantarena.methods.timing.rivals import NAMES, Run, rivals


def ceiling(pair: bool) -> float:
    """Multiply-accumulates per second of the micro-kernel alone, on one thread.

    NaN where the unit has none of this form.
    """
    library = native.library()
    if library.peak is None:
        return math.nan
    isa = library.status.isa
    found = units.peaks([isa], pair=pair)
    return found[isa].cached if isa in found else math.nan


def bandwidth(size: int, threads: int) -> float:
    """Bytes per second at which this much data moves, from the level of memory that holds it.

    Args:
        size: bytes that a layer must move.
        threads: torch threads in use; picks the clock as in :func:`interleave`.

    Returns:
        The better of a copy (read and write) and a sum (read).
    """
    clock = thread_clock() if threads == 1 else time.perf_counter
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
    mixed = mixed_layer(case, (3, 4), 8)
    for suffix, tensor in inputs.items():
        runs[MIXED + suffix] = partial(mixed, tensor)
    others = rivals(case, weight, x)
    runs |= others
    times = interleave(runs, rounds, threads)
    timing = Timing(case, {k: v for k, v in times.items() if k.startswith("fp32")})
    timing.rivals = {name: times[name] for name in others}
    timing.packed = {k: v for k, v in times.items() if k.split("/")[0] in (*modules, MIXED)}
    for name, module in modules.items():
        moved = module.packed_bytes + 4 * (case.inputs + case.outputs)
        rate = ceiling(module.uses_pairs) * threads
        timing.roofline[name] = Roofline(
            products=case.products, bytes=moved, rate=rate, bandwidth=bandwidth(moved, threads)
        )
    return timing


def geomean(values: Iterable[float]) -> float:
    """Geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def table(timings: list[Timing], bits: list[tuple[int, int]]) -> str:
    """The results as text, one line per shape and one of geometric means."""
    names = [f"w{w}a{a}" for w, a in bits]
    head = "".join(f"{name:>8}" for name in (*names, "w3+4a8", *NAMES.values()))
    names.append(MIXED)
    lines = [f"{'shape':24}{'fp32 ms':>9}{head}"]
    for t in timings:
        ratios = "".join(f"{t.ratio(n):8.2f}" for n in names)
        ratios += "".join(
            f"{t.base / t.rivals[n]:8.2f}" if n in t.rivals else f"{'-':>8}" for n in NAMES
        )
        lines.append(f"{t.case.name:24}{t.base * 1e3:9.3f}{ratios}")
    means = "".join(f"{geomean(t.ratio(n) for t in timings):8.2f}" for n in names)
    lines.append(f"{'geometric mean':33}{means}")
    lines.append(
        "* torch x86 int8, inexact on AVX2: 8-bit products saturate there, those of ov8 too"
    )
    return "\n".join(lines)


def rooflines(timings: list[Timing]) -> str:
    """One line per kernel: its work, the best possible time on this machine, and the share reached.

    Operations are two per product. Bytes are those of the packed layer, the input and the output,
    each moved once, at the rate of the level of memory that can hold them.
    """
    lines = [f"{'kernel':32}{'MOP':>9}{'kB':>8}{'GOP/s':>8}{'GB/s':>7}{'at best':>10}{'share':>7}"]
    for t in timings:
        for name, roof in t.roofline.items():
            lines.append(
                f"{t.case.name + ' ' + name:32}{2e-6 * roof.products:9.1f}{1e-3 * roof.bytes:8.0f}"
                f"{2e-9 * roof.rate:8.0f}{1e-9 * roof.bandwidth:7.1f}"
                f"{1e3 * roof.seconds:7.3f} ms{roof.seconds / t.best(name):7.0%}"
            )
    return "\n".join(lines)


def _widths(text: str) -> list[tuple[int, int]]:
    """Pairs of weight and activation bits of a text such as ``8a8,4a8``."""
    pairs = (pair.split("a") for pair in text.split(","))
    return [(int(weight), int(activation)) for weight, activation in pairs]


def main(arguments: list[str] | None = None) -> int:
    """Command line: prints the table and writes JSON where asked."""
    parser = argparse.ArgumentParser(prog="quantarena.methods.timing.kernels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--bits", default=",".join(f"{w}a{a}" for w, a in BITS))
    parser.add_argument("--units", help="instruction sets to compare; by default all but scalar")
    parser.add_argument("--unit-bits", default="8a8,4a8", help="widths at which they are compared")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    bits = _widths(options.bits)
    status = native.status()
    sys.stdout.write(f"{status.backend} kernels, {status.isa}, {options.threads} thread(s)\n")
    timings = []
    for case in cases():
        if options.only in case.name:
            timings.append(measure(case, bits, options.rounds, options.threads))
            sys.stderr.write(f"{case.name} done\n")
    sys.stdout.write(f"{table(timings, bits)}\n\n{rooflines(timings)}\n\n")
    for pair, name in ((False, "4 k per step"), (True, "2 k per step")):
        if not math.isnan(top := ceiling(pair) / 1e9):
            sys.stdout.write(f"ceiling of the micro-kernel, {name}: {top:.0f} GMAC/s\n")
    names = [name for name in status.available if name != "scalar"]
    if options.units is not None:
        names = [name for name in options.units.split(",") if name]
    chosen = [t.case for t in timings] if len(names) > 1 else []
    compared = [
        units.compare(case, widths, names, options.rounds)
        for case in chosen
        for widths in _widths(options.unit_bits)
    ]
    peaks = {pair: units.peaks(names, pair=pair) for pair in (False, True)} if compared else {}
    if compared:
        sys.stdout.write(f"\n{units.table(compared, peaks)}\n")
    if options.json:
        rows = [
            {
                **asdict(t),
                "name": t.case.name,
                "share": {name: roof.seconds / t.best(name) for name, roof in t.roofline.items()},
                "status": asdict(status),
                "units": {u.bits: u.seconds for u in compared if u.case == t.case},
                "peaks": [
                    {"unit": name, "pair": pair, **asdict(peak)}
                    for pair, found in peaks.items()
                    for name, peak in found.items()
                ],
            }
            for t in timings
        ]
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
