"""One cell of the board: tune in a process of its own, measure its memory, draw.

``python -m quantarena.bench.personalise.cell FOLDER`` reads the request from ``cell.json`` in the
folder and writes ``drawn.safetensors`` and ``result.json`` beside it. Peak memory belongs to a
process, so each cell needs a fresh one.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from quantarena.bench.files import write_atomic
from quantarena.bench.personalise.emoji import case, views
from quantarena.bench.personalise.lesson import NoiseLoss, examples
from quantarena.bench.personalise.personalise import float_widths, packed_for, personalise
from quantarena.bench.process_state import process_state
from quantarena.bench.workloads import pipeline, registry
from quantarena.bench.workloads.outliers.plant import with_outliers
from quantarena.bench.workloads.pipeline import LoadedPipeline
from quantarena.bench.workloads.registry import WorkloadInfo
from quantarena.bench.workloads.sampling import Draw, draw_images
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.record.announce import announcing
from quantarena.methods.tuning import Approach, Recipe

REQUEST, RESULT, DRAWN = "cell.json", "result.json", "drawn.safetensors"
_TIMES = 16
"""Timesteps at which the noise error of held-out views is measured."""
_BATCH = 8


@dataclass(frozen=True, slots=True)
class TuningCell:
    """What one process does.

    Attributes:
        workload: name of the workload.
        subject: name of the case, see ``emoji.CASES``.
        approach: what learns.
        bits: widths of packed weights.
        updates: steps of Adam; 0 for the network before tuning.
        seed: of batches, noise and pictures.
        images: pictures of the subject, for all of its drawings together.
        others: pictures of other prompts.
        lr: learning rate; None for the approach's own.
    """

    workload: str
    subject: str
    approach: str
    bits: str
    updates: int
    seed: int
    images: int
    others: int
    lr: float | None = None


@process_state()
def run_cell(cell: TuningCell) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Tune, measure and draw.

    Returns:
        What was measured, as plain JSON types, and the pictures: those of the subject and those of
        other prompts, uint8 (N, 3, S, S).
    """
    info = registry.resolve(cell.workload)
    loaded = with_outliers(pipeline.load(info), info)
    drawings = case(cell.subject)
    learned, held = zip(*(views(drawing, info.resolution) for drawing in drawings), strict=True)
    recipe = Recipe(Approach(cell.approach), updates=cell.updates, lr=cell.lr)
    scheduler = loaded.pipe.scheduler
    loss = NoiseLoss(scheduler, examples(loaded, info, learned), recipe.accumulate, cell.seed)
    judged = NoiseLoss(scheduler, examples(loaded, info, held), recipe.accumulate, cell.seed + 1)
    widths = float_widths(loaded, loss, cell.bits)
    wall, cpu = time.perf_counter(), time.process_time()
    tuning = personalise(loaded, widths, loss, recipe, cell.seed)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    result = {
        **asdict(cell),
        "rate": recipe.rate,
        "trainable": tuning.network.trainable if cell.updates else 0,
        "memory": asdict(tuning.memory),
        "loss": judged.mean(tuning.network, _TIMES),
        "seconds": wall,
        "cpu_seconds": cpu,
        "torch": torch.__version__,
    }
    clock: CallClock | None = None
    if recipe.approach.packs:
        packed = packed_for(tuning, loaded, info.steps)
        loaded.put(packed.module)
        clock = packed.clock
    else:
        loaded.put(tuning.network.module.requires_grad_(False))
    prompts = [drawing.prompt for drawing in drawings]
    pictures = {}
    if cell.images:
        pictures["subject"] = _drawn(loaded, info, prompts, cell.images, cell.seed, clock)
    if cell.others:
        pictures["others"] = _drawn(loaded, info, info.prompts, cell.others, cell.seed, clock)
    return result, pictures


def _drawn(
    loaded: LoadedPipeline,
    info: WorkloadInfo,
    prompts: Sequence[str],
    count: int,
    seed: int,
    clock: CallClock | None,
) -> Tensor:
    asked = replace(info, prompts=tuple(prompts))
    with announcing(loaded.pipe.scheduler, clock):
        return draw_images(loaded, asked, Draw("evaluate", count, seed, info.steps, _BATCH)).images


def main(folder: Path) -> None:
    """Run the cell that a folder asks for."""
    cell = TuningCell(**json.loads((folder / REQUEST).read_text()))
    result, pictures = run_cell(cell)
    save_file(pictures, folder / DRAWN)
    write_atomic(folder / RESULT, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
