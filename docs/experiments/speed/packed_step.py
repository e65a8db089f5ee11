"""Times a packed step of methods against full precision, in turns, on one thread.

The models are quantized quickly (weights rounded to nearest, few points), which changes neither
shapes nor kernels. Times are process CPU time; a ratio is the median over the rounds of the time of
the faster fp32 layout, eager contiguous or channels_last, over that of the method. ``best`` is the
ratio of the least times, which other processes of the machine disturb less.

    python docs/experiments/speed/packed_step.py dgq svdquant rtn --workload emoji-dit
"""

import argparse
import copy
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from quantarena.bench.cache import StageCache
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages import sequence
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.workspace import open_workspace
from quantarena.methods.contract import MethodContext
from quantarena.methods.core.kernels.native import status
from quantarena.methods.core.model.policy import policy
from quantarena.methods.core.network import tensor_bytes
from quantarena.methods.core.packed.pack import PackedModel, channels_last, pack
from quantarena.methods.core.trace.network import trace
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry

QUICK = {
    "dgq": [("adaround", "false")],
    "svdquant": [("rounds", "1"), ("grid", "2")],
}
"""Options that shorten calibration and change no shape."""
FP32 = ("fp32 eager", "fp32 channels_last")


def panel_ratio(packed: PackedModel) -> float:
    """Bytes of all panels over those that the bits of their codes say."""
    leaves = [leaf for name in packed.layers for leaf in packed.parts(name)]
    bits = (leaf.metadata["weight_bits"] * torch.Size(leaf.weight_shape).numel() for leaf in leaves)
    panels = (getattr(leaf, "panels", getattr(leaf, "codes", None)).numel() for leaf in leaves)
    return 8 * sum(panels) / sum(bits)


def main() -> None:
    """Parses the command line and prints one line for each method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--workload", default="emoji-t2i")
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=25)
    given = parser.parse_args()
    torch.set_num_threads(1)
    budget = Budget(
        images=16,
        batch=16,
        steps=10,
        calibration_images=16,
        calibration_samples=32,
        range_samples=32,
        iterations=0,
    )
    workspace = open_workspace(Cell(given.workload, "fp", "fp", 7, budget=budget))
    with tempfile.TemporaryDirectory() as folder:
        recorded = trajectory(workspace, StageCache(Path(folder)))
    network = workspace.loaded.denoiser
    first = recorded.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    graph = trace(network, first.sample, timestep=first.timestep, **first.conditions)
    points = sequence.sampler_batch(recorded, given.batch)
    networks = dict(zip(FP32, (network, channels_last(copy.deepcopy(network))), strict=True))
    clocks = {}
    for name in given.methods:
        cell = Cell(given.workload, name, given.bits, 7, budget=budget)
        effort = Effort(budget.calibration_samples, budget.iterations, budget.range_samples)
        rules = policy(cell.policy)
        context = MethodContext(
            network, graph, recorded, cell.widths, rules, cell.variant, cell.seed, effort
        )
        packed = pack(entry(name).method.configured(QUICK.get(name, [])).run(context))
        networks[name], clocks[name] = packed.module, packed.clock
        size, whole = tensor_bytes(packed.module), tensor_bytes(network)
        print(
            f"{name}: {size / whole:.3f} of fp32's bytes; panels take {panel_ratio(packed):.3f} "
            "times what the bits of their codes say",
            flush=True,
        )

    def seconds(name: str) -> float:
        clock = clocks.get(name)
        at = nullcontext() if clock is None else clock.at(int(points.step[0]))
        with torch.no_grad(), at:
            started = time.process_time()
            points.call(networks[name])
            return time.process_time() - started

    for name in networks:
        for _ in range(8):
            seconds(name)
    times: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(given.rounds):
        names = list(networks)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(seconds(name))
    base = min(FP32, key=lambda name: statistics.median(times[name]))
    print(f"{given.workload} {given.bits}, batch {given.batch}, {status().isa}, against {base}")
    for name in given.methods:
        ratio = statistics.median(a / b for a, b in zip(times[base], times[name], strict=True))
        print(f"  {name}: {ratio:.2f}, best {min(times[base]) / min(times[name]):.2f}")


if __name__ == "__main__":
    main()
