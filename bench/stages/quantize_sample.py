"""The two expensive stations of a cell, cached: quantizing the network and drawing its images."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantarena.bench.cache import StageCache
from quantarena.bench.code_hash import class_sha256, package_sha256
from quantarena.bench.spec import Cell, content_key
from quantarena.bench.stages import ground
from quantarena.bench.stages.ground import Workspace, load_drawn, save_drawn
from quantarena.bench.stages.latency import peak_growth
from quantarena.bench.workloads.sampling import Drawn, draw_images
from quantarena.methods.api import Effort, Method, MethodContext
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.model.policy import UNIFORM, policy
from quantarena.methods.core.packed.pack import PackedModel
from quantarena.methods.core.record.announce import announcing
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import trace

Progress = Callable[[str, int, int], None]
"""Called with (station, done, total)."""


@dataclass(slots=True)
class Work:
    """What a cell gathers on its way."""

    seconds: dict[str, float] = field(default_factory=dict)
    stage_keys: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @contextmanager
    def station(self, name: str) -> Iterator[None]:
        """Book the block's wall seconds under ``name``."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def quantized(
    workspace: Workspace,
    recorded: Trajectory,
    cell: Cell,
    method: Method,
    cache: StageCache,
    work: Work,
    progress: Progress,
) -> tuple[QuantizedModel, dict[str, Any]]:
    """The method's model: from the cache, or made now."""
    denoiser = workspace.loaded.denoiser
    # a sampler of few steps records fewer points than a preset asks for
    asked, there = cell.budget.calibration_samples, recorded.calls * recorded.rows
    samples = min(asked, there)
    if samples < asked:
        work.warnings.append(f"calibrated on all {there} points recorded; {asked} were asked")
    effort = Effort(samples, cell.budget.iterations)
    with torch.no_grad():
        first = recorded.pick(torch.zeros(2, dtype=torch.long), torch.arange(2) % recorded.rows)
        graph = trace(denoiser, first.sample, timestep=first.timestep, **first.conditions)
    wanted = UNIFORM if cell.widths.is_fp else policy(cell.policy, cell.method, method.published)
    context = MethodContext(
        denoiser,
        graph,
        recorded,
        cell.widths,
        wanted,
        cell.variant,
        cell.seed,
        effort,
        lambda done, total: progress("quantize", done, total),
    )
    key = content_key(
        [
            ground.trajectory_key(workspace),
            cell.method,
            cell.variant,
            cell.bits,
            cell.policy,
            cell.seed,
            effort,
            method.info.version,
            class_sha256(type(method)),
            package_sha256("quantarena.methods.core"),
            package_sha256("quantarena.methods.api"),
        ]
    )
    work.stage_keys["quantize"] = key
    made: list[QuantizedModel] = []

    def make(folder: Path) -> None:
        def run() -> None:
            made.append(method.run(context))

        busy = time.process_time()
        peak = peak_growth(run)
        busy = time.process_time() - busy
        model = made[0]
        save_file(model.state(), folder / "state.safetensors")
        cost = {"core_seconds": round(busy, 2), "peak_bytes": peak}
        notes = {"notes": model.notes, "calibration": context.calibration, "cost": cost}
        notes["splits"] = {
            name: [part.stop - part.start for part in layer.part_list()]
            for name, layer in model.layers.items()
            if len(layer.part_list()) > 1
        }
        (folder / "notes.json").write_text(json.dumps(notes))

    def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return json.loads((folder / "notes.json").read_text()), load_file(
            folder / "state.safetensors"
        )

    kept, state = cache.load("quantize", key, make, read)
    work.seconds["quantize"] = float(kept["notes"].get("quantize_seconds", 0.0))
    calibration = kept["calibration"] | kept["cost"] | {"notes": kept["notes"]}
    if made:
        return made[0], calibration
    model = context.wrap(splits=kept["splits"])
    model.load_state(state)
    return model, calibration


def sampled(
    workspace: Workspace,
    packed: PackedModel,
    cell: Cell,
    cache: StageCache,
    work: Work,
    progress: Progress,
) -> Drawn:
    """The cell's images, drawn by the packed network inside its own pipeline."""
    draw = workspace.draw()
    if packed.backend == "fp32":
        return ground.fp_images(workspace, cache)
    key = content_key([work.stage_keys["quantize"], workspace.key(draw), packed.backend])
    work.stage_keys["images"] = key

    def make(folder: Path) -> None:
        original = workspace.loaded.denoiser
        workspace.loaded.put(packed.module)
        started = time.perf_counter()
        try:
            with announcing(workspace.loaded.pipe.scheduler, packed.clock):
                drawn = draw_images(
                    workspace.loaded,
                    workspace.info,
                    draw,
                    lambda done, total: progress("sample", done, total),
                )
        finally:
            workspace.loaded.put(original)
        save_drawn(drawn, folder)
        (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - started))

    def read(folder: Path) -> tuple[Drawn, float]:
        return load_drawn(folder), float(json.loads((folder / "seconds.json").read_text()))

    drawn, work.seconds["sample"] = cache.load("images", key, make, read)
    return drawn
