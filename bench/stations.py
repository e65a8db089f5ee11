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

from quantarena.bench import shared
from quantarena.bench.cache import StageCache
from quantarena.bench.code import class_sha256, package_sha256
from quantarena.bench.latency import peak_growth
from quantarena.bench.shared import Ground, load_drawn, save_drawn
from quantarena.bench.spec import Cell, content_key
from quantarena.bench.workloads.sampling import Drawn, draw_images
from quantarena.methods.api import Effort, Method, MethodContext
from quantarena.methods.core.announce import announcing
from quantarena.methods.core.graph import trace
from quantarena.methods.core.model import QuantizedModel
from quantarena.methods.core.pack import PackedModel
from quantarena.methods.core.policy import UNIFORM, policy
from quantarena.methods.core.trajectory import Trajectory

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
    ground: Ground,
    recorded: Trajectory,
    cell: Cell,
    method: Method,
    cache: StageCache,
    work: Work,
    progress: Progress,
) -> tuple[QuantizedModel, dict[str, Any]]:
    """The method's model: from the cache, or made now."""
    denoiser = ground.loaded.denoiser
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
            shared.trajectory_key(ground),
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
    ground: Ground,
    packed: PackedModel,
    cell: Cell,
    cache: StageCache,
    work: Work,
    progress: Progress,
) -> Drawn:
    """The cell's images, drawn by the packed network inside its own pipeline."""
    draw = ground.draw()
    if packed.backend == "fp32":
        return shared.fp_images(ground, cache)
    key = content_key([work.stage_keys["quantize"], ground.key(draw), packed.backend])
    work.stage_keys["images"] = key

    def make(folder: Path) -> None:
        original = ground.loaded.denoiser
        ground.loaded.put(packed.module)
        started = time.perf_counter()
        try:
            with announcing(ground.loaded.pipe.scheduler, packed.clock):
                drawn = draw_images(
                    ground.loaded,
                    ground.info,
                    draw,
                    lambda done, total: progress("sample", done, total),
                )
        finally:
            ground.loaded.put(original)
        save_drawn(drawn, folder)
        (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - started))

    def read(folder: Path) -> tuple[Drawn, float]:
        return load_drawn(folder), float(json.loads((folder / "seconds.json").read_text()))

    drawn, work.seconds["sample"] = cache.load("images", key, make, read)
    return drawn
