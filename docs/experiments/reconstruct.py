"""Measures how soon other schedules reach plain AdaRound's loss (docs/protocol.md).

The script optimises three blocks of emoji-t2i at w4, weights only, behind a prefix that is already
reconstructed. The engine reports the losses: those of the frozen codes, on 128 of the calibration
points. Core-seconds are processor time of one thread, and include the engine's own losses and
caching. Plain AdaRound takes ten minutes for each block.

    python docs/experiments/reconstruct.py [--only fast]        # the schedules
    python docs/experiments/reconstruct.py --caching            # targets and arrival, whole model
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path

import torch

from quantarena.bench.cache import StageCache
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.workspace import open_workspace
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.model import QuantizedModel, wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.core.trace.blocks import Block, partition
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.learn.losses import RoundingTerm
from quantarena.methods.techniques.learn.param_groups import Group
from quantarena.methods.techniques.learn.reconstruct import reconstruct
from quantarena.methods.techniques.learn.schedule import Schedule
from quantarena.methods.techniques.ranges.mse import mse_range

BLOCKS = (
    "up_blocks.1.resnets.0",
    "up_blocks.0.attentions.0.transformer_blocks.0",
    "mid_block.resnets.1",
)


def rounding(iterations: int, lr: float, strength: float) -> Schedule:
    """Returns AdaRound's schedule with another rate and another strength of the regulariser."""
    term = RoundingTerm(strength=strength)
    return Schedule(iterations, {"rounding": Group(lr)}, rounding=term)


SCHEDULES = {
    "plain": Schedule.adaround(20_000),
    "fast": Schedule.fast(2_000),
    "1000, 0.05, 0.2": rounding(1_000, 0.05, 0.2),
    "2000, 0.01, 0.01": rounding(2_000, 0.01, 0.01),
    "1000, 0.03, 0.1": rounding(1_000, 0.03, 0.1),
    "1000, 0.03, 0.01": rounding(1_000, 0.03, 0.01),
    "1000, 0.03, 0.001": rounding(1_000, 0.03, 0.001),
    "500, 0.1, 0.01": rounding(500, 0.1, 0.01),
}


def workspace(count: int) -> tuple[QuantizedModel, tuple[Block, ...], CalibrationSet]:
    """Returns the model at w4 with MSE ranges, its blocks, and points at all 20 steps."""
    images = max(4, count // 16)
    budget = Budget(images=4, batch=64, steps=20, calibration_images=images)
    opened = open_workspace(Cell("emoji-t2i", "fp", "fp", budget=budget))
    with tempfile.TemporaryDirectory() as folder:
        recorded = trajectory(opened, StageCache(Path(folder)))
    points = UniformStride(count).draw(recorded, 0)
    first, network = points.rows(slice(0, 2)), opened.loaded.denoiser
    graph = trace(network, first.sample, timestep=first.timestep, **first.conditions)
    model = wrap(network, graph, UNIFORM.assign(graph, Bits(4, 8)), splits=True)
    model.set_weight_ranges(mse_range)
    with model.using(weights=False, acts=False):
        blocks = partition(model.module, model.layers, lambda: first.call(model.module))
    return model, blocks, points


def compare(only: list[str]) -> None:
    """Runs every schedule on every block and prints one line for each."""
    model, blocks, points = workspace(1024)
    names = [block.name for block in blocks]
    for name in sorted(BLOCKS, key=names.index):
        place = names.index(name)
        prefix = [
            b
            for b in blocks[:place]
            if model.layers[b.layers[0]].parts[0].weight_quantizer.codes is None
        ]
        reconstruct(model, prefix, points, Schedule.adaround(150), acts=False, seed=0)
        for label, schedule in SCHEDULES.items():
            if not only or label in only:
                fresh = copy.deepcopy(model)
                (report,) = reconstruct(
                    fresh, [blocks[place]], points, schedule, acts=False, seed=0
                )
                print(
                    f"{name:48} {label:20} {report.iterations:6} iterations "
                    f"{report.cpu_seconds:7.1f} core-s  {report.before:.4f} -> {report.after:.4f}",
                    flush=True,
                )


def caching(count: int = 256) -> None:
    """Prints the seconds of caching alone, and of one iteration of every block."""
    model, blocks, points = workspace(count)

    def run(iterations: int) -> float:
        start = time.process_time()
        schedule = Schedule.adaround(iterations)
        reconstruct(copy.deepcopy(model), blocks, points, schedule, acts=False, seed=0)
        return time.process_time() - start

    run(0)
    without, some = run(0), run(10)
    each = (some - without) / 10
    share = without / each / 100
    print(f"{len(points)} points, {len(blocks)} blocks: caching {without:.2f} core-s")
    print(f"an iteration of every block {each:.3f} core-s, caching is {share:.3f} of 100 of them")


def main() -> None:
    """Parses the command line and runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="labels of the schedules to run")
    parser.add_argument("--caching", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    caching() if options.caching else compare(options.only)


if __name__ == "__main__":
    main()
