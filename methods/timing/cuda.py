"""Times packed layers on this GPU: ``python -m quantarena.methods.timing.cuda --json FILE``.

Layers with bfloat16 inputs and outputs are compared with cuBLAS (cuDNN for convolutions) in
bfloat16. ``seconds`` includes the quantization of activations, ``product_seconds`` is the integer
product alone. The contestants take turns; ten calls form one CUDA graph, which is timed by events,
and the median is reported. All data is in the L2 cache where it fits. docs/kernels.md describes
the file.
"""

import argparse
import copy
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from triton.runtime.errors import OutOfResources

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.cuda import gemm, tuning
from quantarena.methods.core.cuda.device import arch, status, timing_event
from quantarena.methods.core.cuda.layer import CudaPackedLayer
from quantarena.methods.core.cuda.place import on_cuda
from quantarena.methods.core.cuda.problem import problem
from quantarena.methods.core.cuda.quantize import quantize
from quantarena.methods.core.cuda.step_graph import CudaRecorder, StepGraph
from quantarena.methods.core.cuda.tuning import Config
from quantarena.methods.core.packed.pack import PackedModel
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.timing.cases import (
    Case,
    cases,
    example_input,
    gaussian_layer,
)

Run = Callable[[], object]
Clock = Callable[[dict[str, Run]], dict[str, float]]
FORMAT = 1
SQUARE = Case("linear", (4096, 4096, 4096))
"""Rows, input and output features of the product that cuBLAS is best at."""
BITS = ((8, 8), (4, 8), (3, 8), (2, 8))


@dataclass(frozen=True, slots=True)
class LayerTiming:
    """Times of one layer at one width."""

    name: str
    bits: str
    seconds: float
    product_seconds: float
    bf16_seconds: float
    tera_ops: float
    """Integer operations (two a product) per second of the product alone, in 10**12."""
    config: Config

    @property
    def ratio(self) -> float:
        """bfloat16 time over packed time, quantization included; below 1 is a loss."""
        return self.bf16_seconds / self.seconds


@dataclass(frozen=True, slots=True)
class NetworkTiming:
    """Times of one call of a whole network."""

    name: str
    bits: str
    batch: int
    seconds: float
    """Time of the packed network, as one CUDA graph."""
    bf16_seconds: float
    """Time of the network in bfloat16, compiled with CUDA graphs."""
    bf16_eager_seconds: float

    @property
    def ratio(self) -> float:
        """Compiled bfloat16 time over packed time; below 1 is a loss."""
        return self.bf16_seconds / self.seconds


def event_times(runs: dict[str, Run], rounds: int = 50, warmups: int = 5) -> dict[str, float]:
    """Median seconds of each run on the current stream, in turns."""
    for run in runs.values():
        for _ in range(warmups):
            run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start, end = timing_event(), timing_event()
            start.record()
            run()
            end.record()
            end.synchronize()
            samples[name].append(start.elapsed_time(end) * 1e-3)
    return {name: statistics.median(times) for name, times in samples.items()}


def graph_times(runs: dict[str, Run], calls: int = 10) -> dict[str, float]:
    """Median seconds of each run, with ten runs in one CUDA graph so that none waits for Python."""
    record = CudaRecorder(torch.device("cuda"))
    replays = {name: record(partial(_repeat, run, calls))[0] for name, run in runs.items()}
    return {name: time / calls for name, time in event_times(dict(replays)).items()}


def _repeat(run: Run, calls: int) -> None:
    for _ in range(calls):
        run()


def product_run(module: CudaPackedLayer, x: Tensor, config: Config) -> Run:
    """A run of the integer product alone, on codes computed beforehand."""
    buffers = dict(module.named_buffers())
    bits, act_bits = module.metadata["weight_bits"], module.metadata["act_bits"]
    call = problem(module.metadata, x)
    entry = module.entry_index[:1]
    codes, sums = quantize(x, call, buffers, entry, act_bits, "weight_zero" in buffers)
    y = torch.empty_strided(call.out_shape, call.out_strides, dtype=x.dtype, device=x.device)

    def run() -> None:
        gemm.multiply(
            codes,
            sums,
            y,
            call,
            buffers,
            entry,
            weight_bits=bits,
            act_bits=act_bits,
            mode=gemm.FLOAT,
            config=config,
        )

    return run


def measure(
    case: Case, bits: tuple[int, int], clock: Clock, device: str, *, tune: bool = False
) -> LayerTiming:
    """Times a case at a width.

    Args:
        case: the layer.
        bits: widths of weights and activations.
        clock: measures the seconds of runs that take turns.
        device: device to run on.
        tune: time every configuration first and use the best.

    Returns:
        The times.
    """
    layer, weight = gaussian_layer(case, *bits)
    module = CudaPackedLayer(layer).to(device)
    x = example_input(case).to(device, torch.bfloat16)
    dense = weight.to(device, torch.bfloat16)
    base: Run = partial(functional.linear, x, dense)
    if case.kind == "conv2d":
        x = x.contiguous(memory_format=torch.channels_last)
        dense = dense.contiguous(memory_format=torch.channels_last)
        base = partial(functional.conv2d, x, dense, padding=1)
    call = problem(module.metadata, x)
    key = (call.rows, call.columns, call.depth, bits[0])
    if tune:

        def seconds(config: Config) -> float:
            try:
                return clock({"": product_run(module, x, config)})[""]
            except OutOfResources:  # too much shared memory for this GPU
                return math.inf

        tuning.tune(key, seconds, tuning.candidates(bits[0]))
    config = tuning.choose(*key, arch(torch.device(device)))
    times = clock(
        {
            "layer": lambda: module(x),
            "product": product_run(module, x, config),
            "bf16": base,
        }
    )
    return LayerTiming(
        name=case.name,
        bits="w{}a{}".format(*bits),
        seconds=times["layer"],
        product_seconds=times["product"],
        bf16_seconds=times["bf16"],
        tera_ops=2e-12 * case.products / times["product"],
        config=config,
    )


def measure_step(
    name: str,
    bits: str,
    packed: PackedModel,
    original: nn.Module,
    points: CalibrationSet,
    clock: Clock = event_times,
    device: str = "cuda",
    capture: Callable[[nn.Module, CallClock], Run] | None = None,
    optimize: Callable[[nn.Module], Run] | None = None,
) -> NetworkTiming:
    """Times a packed network against the original in bfloat16.

    Args:
        name: name of the network.
        bits: requested widths.
        packed: packed network, which is moved to the device in place.
        original: full-precision network, which is copied.
        points: one batch at one sampler call.
        clock: measures the seconds of runs that take turns.
        device: device to run on.
        capture: turns the packed call into one launch; by default a ``StepGraph``.
        optimize: makes the baseline fast; by default ``torch.compile`` with CUDA graphs.

    Returns:
        The times.
    """
    batch = points.on(device, torch.bfloat16)
    plain = copy.deepcopy(original).to(device, torch.bfloat16)
    plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = on_cuda(packed.module, device).to(torch.bfloat16)
    capture = capture or (lambda step, clock: StepGraph(step, device, clock=clock))
    optimize = optimize or (lambda step: torch.compile(step, mode="reduce-overhead"))
    runs: dict[str, Any] = {
        "packed": capture(network, packed.clock),
        "compiled": optimize(plain),
        "eager": plain,
    }
    with torch.no_grad(), packed.clock.at(int(batch.step[0])):
        times = clock({name: partial(batch.call, step) for name, step in runs.items()})
    return NetworkTiming(name, bits, len(batch), times["packed"], times["compiled"], times["eager"])


def document(rows: Iterable[LayerTiming | NetworkTiming]) -> dict[str, Any]:
    """The results and the machine that they were measured on, in JSON types."""
    gpu = status()
    return {
        "format": FORMAT,
        "gpu": gpu.device,
        "capability": gpu.capability,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": metadata.version("triton"),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }


def line(row: LayerTiming) -> str:
    """One row of the table."""
    tile = f"{row.config.rows}x{row.config.columns}x{row.config.depth}"
    return (
        f"{row.name:24}{row.bits:>6}{row.bf16_seconds * 1e6:10.1f}{row.seconds * 1e6:10.1f}"
        f"{row.product_seconds * 1e6:10.1f}{row.ratio:8.2f}{row.tera_ops:8.0f}  {tile}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line: prints the table and writes JSON where asked."""
    parser = argparse.ArgumentParser(prog="quantarena.methods.timing.cuda")
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--tune", action="store_true", help="time every configuration first")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    if reason := status().reason:
        sys.stderr.write(f"nothing to time: {reason}\n")
        return 2
    head = f"{'bf16 us':>10}{'layer us':>10}{'product us':>11}{'ratio':>7}{'Tops':>8}  tile"
    sys.stdout.write(f"{status().device}\n{'shape':24}{'bits':>6}{head}\n")
    rows = []
    with torch.inference_mode():
        for case in (SQUARE, *cases()):
            for bits in BITS if options.only in case.name else ():
                rows.append(measure(case, bits, graph_times, "cuda", tune=options.tune))
                sys.stdout.write(line(rows[-1]) + "\n")
    if options.json:
        options.json.write_text(json.dumps(document(rows), indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
