"""Writes a packed pipeline's denoiser for another runtime: the verb ``export-model``."""

import json
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantarena.bench.devices.runtimes import FILE_RUNTIMES, FileRuntime
from quantarena.bench.devices.turns import take_turns
from quantarena.bench.errors import QuantArenaError, Unsupported, UserError
from quantarena.bench.files import draft_of
from quantarena.bench.metrics.fidelity.lpips import lpips
from quantarena.bench.process_state import process_state
from quantarena.bench.ship.pipeline_folder import ExportedPipeline, open_exported, workload_of
from quantarena.bench.spec import Budget
from quantarena.bench.stages.networks import EXAMPLE_ROWS
from quantarena.bench.stages.quantize import Progress
from quantarena.bench.stages.record import record, recorded_in
from quantarena.bench.stages.sequence import TIMING_THREADS, sampler_batch
from quantarena.bench.stages.workspace import Workspace
from quantarena.bench.target import absent_library
from quantarena.bench.workloads.sampling import draw_images
from quantarena.methods.builtin import INSTALL
from quantarena.methods.core.record.announce import announcing
from quantarena.methods.core.record.trajectory import CalibrationSet
from quantarena.methods.rivals.stand_in import StandIn

LPIPS_LIMIT = 0.002
"""Largest mean LPIPS between images of the other runtime and those of the packed kernels.

One image may be further: docs/runtimes.md, "How near is near"."""
DOCUMENT = "export.json"


@dataclass(frozen=True, slots=True)
class Order:
    """A request to export.

    Attributes:
        folder: a folder that ``quantize`` wrote.
        runtime: a name out of ``FILE_RUNTIMES``.
        output: where the model goes; it must not exist.
        images: images of the parity gate, and of the timed step.
        rounds: timed rounds.
        seed: of the noise.
    """

    folder: Path
    runtime: str
    output: Path
    images: int
    rounds: int
    seed: int


@process_state(TIMING_THREADS)
def export_model(order: Order, progress: Progress) -> dict[str, Any]:
    """Write a model of another runtime, and hold it against the packed kernels.

    Returns:
        What was written and measured, as plain JSON types.

    Raises:
        UserError: the model cannot be expressed, the runtime is absent, or the output is taken.
        QuantArenaError: a layer does not run in integers, or images differ.
    """
    runtime = FILE_RUNTIMES[order.runtime]
    if absent := absent_library(order.runtime):
        raise UserError(f"{absent} is not installed: {INSTALL}")
    if order.output.exists():
        raise UserError(f"{order.output} exists: choose another place with -o")
    exported = open_exported(order.folder)
    workspace = _workspace(order, exported)
    points = _recorded(workspace, progress)
    progress("convert", 0, 1)
    output = order.output.expanduser().resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(output) as work:
        work.chmod(0o755)
        try:
            few = points.rows(slice(0, EXAMPLE_ROWS))
            integer = runtime.write(exported.packed, few, work)
        except Unsupported as error:
            raise UserError(f"{order.folder} has no {runtime.title} form: {error}") from None
        document = _measured(order, workspace, exported, runtime, work, points, progress)
        document["layers"] = integer
        document["bytes"] = sum(file.stat().st_size for file in work.iterdir())
        (work / DOCUMENT).write_text(json.dumps(document, indent=1) + "\n")
        os.replace(work, output)
    return {"folder": str(order.output), **document}


def _workspace(order: Order, exported: ExportedPipeline) -> Workspace:
    budget = Budget(images=order.images, batch=order.images, calibration_images=order.images)
    exported.loaded.pipe.set_progress_bar_config(disable=True)
    return Workspace(workload_of(exported, order.folder), exported.loaded, order.seed, budget)


def _recorded(workspace: Workspace, progress: Progress) -> CalibrationSet:
    """One call of the packed network, as the sampler makes it."""
    with tempfile.TemporaryDirectory() as name:
        draw = workspace.draw(calibration=True)
        record(workspace, draw, Path(name), partial(progress, "record"))
        return sampler_batch(recorded_in(Path(name)), draw.count)


def _measured(
    order: Order,
    workspace: Workspace,
    exported: ExportedPipeline,
    runtime: FileRuntime,
    folder: Path,
    points: CalibrationSet,
    progress: Progress,
) -> dict[str, Any]:
    """Parity of one call and of images, and both speeds.

    Raises:
        QuantArenaError: images differ.
    """
    packed = exported.packed
    stand_in = StandIn(packed.module, runtime.network(folder))
    with torch.no_grad(), packed.clock.at(int(points.step[0])):
        wanted, found = points.call(packed.module), points.call(stand_in)
    images = []
    for name, module in (("packed", packed.module), (runtime.name, stand_in)):
        workspace.loaded.put(module)
        with announcing(workspace.loaded.pipe.scheduler, packed.clock):
            drawn = draw_images(
                workspace.loaded, workspace.info, workspace.draw(), partial(progress, name)
            )
        images.append(drawn.images)
    workspace.loaded.put(packed.module)
    apart = lpips(images[0], images[1])
    if not apart.mean() <= LPIPS_LIMIT:
        raise QuantArenaError(
            f"images of {runtime.title} are {apart.mean():.4f} (LPIPS) from those of the packed "
            f"kernels, more than {LPIPS_LIMIT}"
        )
    with packed.clock.at(int(points.step[0])):
        networks = {"packed": packed.module, runtime.name: stand_in}
        turns = take_turns(networks, points, order.rounds, partial(progress, "time"))
    ours, theirs = turns.seconds("packed"), turns.seconds(runtime.name)
    return {
        "runtime": runtime.version,
        "packed_sha256": exported.loaded.sha256,
        "call_error": float((found - wanted).norm() / wanted.norm()),
        "lpips_mean": float(apart.mean()),
        "lpips_max": float(apart.max()),
        "images": order.images,
        "step_ms": 1e3 * float(np.median(theirs)),
        "packed_step_ms": 1e3 * float(np.median(ours)),
        "speedup": float(np.median(np.asarray(ours) / np.asarray(theirs))),
        "disturbed_rounds": turns.disturbed,
        "warning": turns.warning,
    }
