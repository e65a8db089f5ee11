"""Measures what the weight of MPQ-DM's relation distillation (TRD) does on a shipped model.

One line for each weight and one without fine-tuning, on one cell at the budget of ``quick``:

- *share*: norm of TRD's gradient over the prediction's, at the updates at which TRD acts, measured
  in the run itself: its quartiles, by LoRA's factors;
- *cosine*: of these two gradients, the median;
- *one call*: relative squared error of the prediction on trajectories of other images;
- *relations*: the relation loss itself on walks of those images, each image and window.

    python docs/experiments/relation/weight.py --weights 0,100,1000,10000
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from quantarena.bench.cache import StageCache
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.workspace import open_workspace
from quantarena.methods.contract import MethodContext
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.steps import UniformStride, WholeWalks
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import trace
from quantarena.methods.info import Effort
from quantarena.methods.mpq_dm import MpqDm, last_block, relation_loss
from quantarena.methods.techniques.distill import distill as engine
from quantarena.methods.techniques.distill.window_terms import TaughtCall, WindowTerm
from quantarena.methods.techniques.learn.module_outputs import module_outputs

WINDOW = 2
WALKS, POINTS = 8, 256
"""Held-out walks that relations are compared on, and points that one call is judged on."""


@dataclass(slots=True)
class Gradients:
    """TRD's gradient beside the prediction's, by LoRA's factors, at each update where TRD acts.

    Attributes:
        shares: norm of TRD's over the norm of the prediction's.
        cosines: of the two.
    """

    shares: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)

    def note(self, prediction: Tensor, both: Tensor) -> None:
        """Add one update."""
        relation = both - prediction
        self.shares.append(float(relation.norm() / prediction.norm()))
        self.cosines.append(float(torch.cosine_similarity(relation, prediction, dim=0)))

    def cells(self) -> str:
        """Two cells of a table."""
        if not self.shares:
            return "0 | -"
        low, middle, high = statistics.quantiles(self.shares, n=4)
        return f"{middle:.2g} [{low:.2g}, {high:.2g}] | {statistics.median(self.cosines):+.2f}"


def taken(model: QuantizedModel) -> Tensor:
    """The gradient of LoRA's factors that have one, flat; they then have none."""
    named = model.module.named_parameters()
    found = [(name, p) for name, p in named if "lora" in name and p.grad is not None]
    return torch.cat([p.grad.flatten().clone() for _, p in found if p.grad is not None])


@contextmanager
def watched() -> Iterator[Gradients]:
    """Inside the block, distillation also notes the gradients of its terms on their own."""
    notes, original = Gradients(), engine.add_gradients

    def add(
        model: QuantizedModel,
        window: Sequence[TaughtCall],
        call: int,
        terms: Sequence[WindowTerm],
        reduction: Literal["sum", "mean"],
    ) -> tuple[Tensor, Tensor]:
        acts = any((call + 1) % t.calls == 0 and len(window) >= t.calls for t in terms)
        if acts:
            original(model, window, call, (), reduction)
            alone = taken(model)
            for parameter in model.module.parameters():
                parameter.grad = None
        result = original(model, window, call, terms, reduction)
        if acts:
            notes.note(alone, taken(model))
        return result

    engine.add_gradients = add
    try:
        yield notes
    finally:
        engine.add_gradients = original


def context(cell: Cell, recorded: Trajectory, network: torch.nn.Module) -> MethodContext:
    """What the method is given."""
    first = recorded.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    graph = trace(network, first.sample, timestep=first.timestep, **first.conditions)
    given = cell.budget
    effort = Effort(given.calibration_samples, given.iterations, given.range_samples)
    return MethodContext(network, graph, recorded, cell.widths, UNIFORM, "paper", cell.seed, effort)


@torch.no_grad()
def relations(
    model: QuantizedModel, network: torch.nn.Module, module: str, walks: CalibrationSet
) -> float:
    """The relation loss on whole walks, each image and window."""
    losses = []
    steps = walks.step.unique().tolist()
    for first in range(0, len(steps) - WINDOW + 1, WINDOW):
        ours, theirs = [], []
        for step in steps[first : first + WINDOW]:
            now = walks.rows(walks.step == step)
            with module_outputs(model.module, (module,)) as features:
                model.run(now)
            ours.append(features[module])
            with module_outputs(network, (module,)) as features:
                now.call(network)
            theirs.append(features[module])
        losses.append(float(relation_loss(ours, theirs)) / len(ours[0]))
    return sum(losses) / len(losses)


@torch.no_grad()
def one_call(model: QuantizedModel, network: torch.nn.Module, points: CalibrationSet) -> float:
    """Relative squared error of the prediction."""
    target = torch.cat([few.call(network) for few in points.batches(32)])
    found = torch.cat([model.run(few) for few in points.batches(32)])
    return float((found - target).square().mean() / target.square().mean())


def main() -> None:
    """Parses the command line and prints one line for each weight."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="emoji-dit")
    parser.add_argument("--bits", default="w2a4")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--iterations", type=int, default=Budget().iterations)
    parser.add_argument("--weights", default="0,100,1000,10000")
    given = parser.parse_args()
    torch.set_num_threads(1)
    budget = Budget(iterations=given.iterations)
    cell = Cell(given.workload, "mpq_dm", given.bits, given.seed, budget=budget)
    others = Cell(
        given.workload, "mpq_dm", given.bits, given.seed + 1, budget=Budget(calibration_images=32)
    )
    opened = open_workspace(cell)
    network = opened.loaded.denoiser
    with tempfile.TemporaryDirectory() as folder:
        cache = StageCache(Path(folder))
        recorded = trajectory(opened, cache)
        elsewhere = trajectory(open_workspace(others), cache)
        points = UniformStride(POINTS).draw(elsewhere, 0)
        walks = WholeWalks(WALKS).draw(elsewhere, 0)
        given_to = context(cell, recorded, network)
        module = last_block(given_to, given_to.wrap(), points)
        print(f"{module} of {given.workload}, {given.bits}, seed {given.seed}")
        print("| `relation` | share | cosine | one call | relations | core-seconds |")
        print("|---|---|---|---|---|---|", flush=True)
        settings = {"not fine-tuned": MpqDm.Options(finetune=False)} | {
            weight: MpqDm.Options(relation=float(weight), window=WINDOW)
            for weight in given.weights.split(",")
        }
        for name, options in settings.items():
            start = time.process_time()
            with watched() as notes:
                model = MpqDm(options).run(given_to)
            spent = time.process_time() - start
            error = one_call(model, network, points)
            kept = relations(model, network, module, walks)
            print(
                f"| {name} | {notes.cells()} | {error:.4f} | {kept:.3g} | {spent:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
