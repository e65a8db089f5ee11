"""Measures what a method's options give and cost: one line for each setting, on one cell.

The images are those of the cell's seed. Choose a seed from which no board is made; 7 is the
default. The error of one call is that of the noise prediction on full-precision trajectories of
these images, with the codes of the packed network. Image distances are to full precision from the
same noise.

    python docs/experiments/method_options.py METHOD w4a4 --set weight_lr=0.1 --set per_call=false

Each ``--set`` makes one more line; commas join several options of one line. The values are those of
``quantarena run --option METHOD.NAME=VALUE``. The error of one call divides all squared errors by
all squared predictions; beside it is the geometric mean of the errors of rows, each relative to its
own prediction. ``--parts`` tells both again with weights alone, and with activations alone, in
floating point: which of them the error comes from.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from quantarena.bench.cache import StageCache
from quantarena.bench.memory import peak_growth
from quantarena.bench.metrics.fidelity.fidelity import fidelity
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.fp_images import fp_images
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.workspace import Workspace, open_workspace
from quantarena.bench.workloads.sampling import draw_images
from quantarena.methods.contract import Method, MethodContext
from quantarena.methods.core.errors import UserError
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.model.policy import policy
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.record.announce import announcing
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.core.record.trajectory import CalibrationSet, Trajectory
from quantarena.methods.core.trace.network import trace
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry


def heldout(workspace: Workspace, count: int = 256) -> CalibrationSet:
    """Records points on the full-precision trajectories of eight evaluation images, or of all."""
    loaded = workspace.loaded
    few = Workspace(workspace.info, loaded, workspace.seed, Budget(images=8, batch=8))
    with recording(loaded.denoiser, loaded.pipe.scheduler) as done:
        draw_images(loaded, workspace.info, few.draw(), lambda *_: None)
    recorded = done()
    return UniformStride(min(count, recorded.calls * recorded.rows)).draw(recorded, 0)


def options(text: str) -> list[tuple[str, str]]:
    """Parses ``a=1,b=false`` to pairs."""
    pairs = (item.partition("=") for item in text.split(",") if item)
    return [(name.strip(), value) for name, _, value in pairs]


def quantized(
    method: Method, cell: Cell, workspace: Workspace, recorded: Trajectory
) -> tuple[QuantizedModel, float, int]:
    """Quantizes; returns the model, its core-seconds and the peak growth of resident memory."""
    first = recorded.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    network = workspace.loaded.denoiser
    graph = trace(network, first.sample, timestep=first.timestep, **first.conditions)
    rules = policy(cell.policy, cell.method, method.published)
    context = MethodContext(
        network,
        graph,
        recorded,
        cell.widths,
        rules,
        cell.variant,
        cell.seed,
        Effort(cell.budget.calibration_samples, cell.budget.iterations, cell.budget.range_samples),
    )
    made: list[QuantizedModel] = []
    start = time.process_time()
    peak = peak_growth(lambda: made.append(method.run(context)))
    return made[0], time.process_time() - start, peak


@torch.no_grad()
def one_call(
    model: QuantizedModel, points: CalibrationSet, target: Tensor, *, weights: bool, acts: bool
) -> str:
    """The errors of one call with some of the quantizers."""
    with model.using(weights=weights, acts=acts):
        errors = (model.run(points) - target).square().flatten(1).sum(1)
    sizes = target.square().flatten(1).sum(1)
    whole, rows = errors.sum() / sizes.sum(), (errors / sizes).clamp_min(1e-12).log().mean().exp()
    return f"one call {float(whole):.5f} (geometric {float(rows):.5f})"


@torch.no_grad()
def judge(
    model: QuantizedModel, workspace: Workspace, cache: StageCache, points: CalibrationSet
) -> str:
    """Measures the errors of one call and of whole images."""
    loaded, network, packed = workspace.loaded, workspace.loaded.denoiser, pack(model)
    target = points.call(network)
    gap = one_call(model, points, target, weights=True, acts=True)
    reference = fp_images(workspace, cache).images
    loaded.put(packed.module)
    try:
        with announcing(loaded.pipe.scheduler, packed.clock):
            drawn = draw_images(loaded, workspace.info, workspace.draw(), lambda *_: None)
    finally:
        loaded.put(network)
    found = fidelity(reference, drawn.images)
    scores = (f"{name} {float(values.mean()):.4f}" for name, values in found.items())
    return f"{gap}  {'  '.join(scores)}"


@torch.no_grad()
def tell_parts(model: QuantizedModel, points: CalibrationSet, network: nn.Module) -> None:
    """Prints the error of one call without quantized weights, and without quantized activations."""
    target = points.call(network)
    for name, weights, acts in (("weights", False, True), ("activations", True, False)):
        line = one_call(model, points, target, weights=weights, acts=acts)
        print(f"    {name} in floating point: {line}", flush=True)


def main() -> None:
    """Parses the command line and prints one line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method")
    parser.add_argument("bits")
    parser.add_argument("--workload", default="emoji-t2i")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=Budget().iterations)
    parser.add_argument("--samples", type=int, default=Budget().calibration_samples)
    parser.add_argument("--range-samples", type=int, default=Budget().range_samples)
    parser.add_argument("--calibration-images", type=int, default=Budget().calibration_images)
    parser.add_argument("--variant", default="paper")
    parser.add_argument("--policy", default="uniform")
    parser.add_argument("--set", action="append", default=[], help="one setting: a=1,b=False")
    parser.add_argument("--parts", action="store_true", help="which part the error comes from")
    parser.add_argument("--cache", type=Path, help="folder of recordings and images to reuse")
    given = parser.parse_args()
    torch.set_num_threads(1)
    budget = Budget(
        images=given.images,
        calibration_images=given.calibration_images,
        calibration_samples=given.samples,
        range_samples=given.range_samples,
        iterations=given.iterations,
    )
    cell = Cell(
        given.workload, given.method, given.bits, given.seed, given.variant, given.policy, budget
    )
    workspace = open_workspace(cell)
    with tempfile.TemporaryDirectory() as folder:
        cache = StageCache(given.cache or Path(folder))
        recorded, points = trajectory(workspace, cache), heldout(workspace)
        for text in given.set or [""]:
            try:
                method = entry(given.method).method.configured(options(text))
            except UserError as error:
                parser.error(str(error))
            model, seconds, peak = quantized(method, cell, workspace, recorded)
            line = judge(model, workspace, cache, points)
            print(
                f"{text or 'as it is':40} {seconds:6.1f} core-s  {peak / 2**20:6.0f} MiB  {line}",
                flush=True,
            )
            if given.parts:
                tell_parts(model, points, workspace.loaded.denoiser)


if __name__ == "__main__":
    main()
