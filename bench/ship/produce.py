"""Quantizing one model to ship it, and drawing pictures with it: what two verbs of the CLI do."""

import dataclasses
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from quantarena.bench.cache import StageCache
from quantarena.bench.errors import QuantArenaError, UserError, one_line
from quantarena.bench.ship import pipeline_folder
from quantarena.bench.ship.pipeline_folder import ExportedPipeline
from quantarena.bench.spec import Cell
from quantarena.bench.stages import ground
from quantarena.bench.stages.ground import Workspace
from quantarena.bench.stages.quantize_sample import Progress, Work, quantized
from quantarena.bench.workloads import registry
from quantarena.bench.workloads.sampling import Draw, draw_images
from quantarena.methods.api import Method
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.packed.pack import PackedModel, observe, pack, parity
from quantarena.methods.registry import entry

BATCH = 8
PARITY_ROWS = 4
GAP = 2
"""White pixels between the pictures of a grid."""


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """What is to be quantized, and where it goes.

    Attributes:
        cell: workload, method, bits, seed and what the method may spend.
        folder: of the exported pipeline.
        cache: of stages; what a run has made there is used again.
        plugins: absolute paths.
        command: that makes the same model again.
        replace: whether an earlier export may be written over.
    """

    cell: Cell
    folder: Path
    cache: Path
    plugins: tuple[str, ...]
    command: str
    replace: bool


def quantize_model(order: Order, progress: Progress) -> dict[str, Any]:
    """Quantize, pack, check packed against fake, and write the pipeline folder.

    Returns:
        The content of ``packed.json``, less its layers.

    Raises:
        UserError: what was asked cannot be done; the line says why.
        QuantArenaError: the method broke its contract, or failed.
    """
    cell = order.cell
    pipeline_folder.check_target(order.folder, replace=order.replace)
    torch.set_num_threads(1)  # as in a run, so that both make the same codes
    method = entry(cell.method, order.plugins).method()
    try:
        method.check(cell.widths, cell.variant)
    except Unsupported as error:
        raise UserError(str(error)) from None
    cache, workspace = StageCache(order.cache), ground.open_workspace(cell)
    work = Work()
    model, packed, calibration, gap = _made(workspace, method, cell, cache, work, progress)
    observed = observe(model, packed, workspace.loaded.denoiser)
    info = method.info
    meta = {
        "base_model": _base(workspace.info),
        "base_sha256": workspace.loaded.sha256,
        "method": cell.method,
        "title": info.title,
        "paper": "" if info.paper == "-" else info.paper,
        "method_version": info.version,
        "bits": cell.bits,
        "variant": cell.variant,
        "policy": cell.policy,
        "seed": cell.seed,
        "samples": cell.budget.calibration_samples,
        "warnings": list(work.warnings),
        "iterations": cell.budget.iterations,
        "calibration": {k: v for k, v in calibration.items() if k != "notes"},
        "parity": gap,
        "observed": {name: getattr(observed, name) for name in observed.__slots__},
        "command": order.command,
    }
    document = pipeline_folder.save_pipeline(
        workspace, packed, order.folder, meta, replace=order.replace
    )
    return {name: value for name, value in document.items() if name != "layers"}


def _made(
    workspace: Workspace,
    method: Method,
    cell: Cell,
    cache: StageCache,
    work: Work,
    progress: Progress,
) -> tuple[QuantizedModel, PackedModel, dict[str, Any], float]:
    recorded = ground.trajectory(
        workspace, cache, lambda done, total: progress("record", done, total)
    )
    try:
        model, calibration = quantized(workspace, recorded, cell, method, cache, work, progress)
    except Unsupported as error:
        raise UserError(str(error)) from None
    except QuantArenaError:
        raise
    except Exception as error:  # whatever a plug-in raises
        raise QuantArenaError(f"{cell.method} failed: {one_line(error)}") from error
    if not model.layers:
        raise UserError(f"{cell.method} at {cell.bits} quantizes nothing: there is nothing to pack")
    progress("pack", 0, 1)
    packed = pack(model)
    rows = torch.arange(PARITY_ROWS)
    calls = torch.linspace(0, recorded.calls - 1, PARITY_ROWS).round().long()
    report = parity(model, packed, recorded.pick(calls, rows % recorded.rows))
    progress("pack", 1, 1)
    return model, packed, calibration, report.max_rel


def _base(info: registry.WorkloadInfo) -> str:
    """Name of the workload; never the path of somebody's disk."""
    return info.noise_name


def draw_grid(
    exported: ExportedPipeline,
    folder: Path,
    file: Path,
    *,
    count: int,
    prompts: tuple[str, ...],
    seed: int,
    steps: int,
    progress: Progress,
) -> dict[str, Any]:
    """Draw pictures with an exported model and write them as one PNG.

    The noise is that of the evaluation images of the same workload and seed, so a zoo model draws
    the pictures that its row shows.

    Args:
        exported: the model.
        folder: where it was loaded from.
        file: PNG to write.
        count: pictures.
        prompts: prompts or classes; empty for those that came with the model.
        seed: of the noise.
        steps: sampler steps; 0 for the model's own number.
        progress: called now and then.

    Raises:
        UserError: prompts that the model cannot take, or a file that cannot be written.
    """
    info = registry.resolve(str(folder.resolve()))
    base = str(exported.meta.get("base_model", info.title))
    info = replace(info, name=base, path=Path(base))  # the noise is named after either
    if prompts and info.conditions == "none":
        raise UserError(f"{folder} draws without prompts: leave --prompt out")
    if info.conditions == "class" and not all(p.strip().isdecimal() for p in prompts):
        raise UserError(f"{folder} takes class numbers as --prompt, such as --prompt 3")
    if prompts:
        info = replace(info, prompts=prompts)
    draw = Draw("evaluate", count, seed, steps or info.steps, min(BATCH, count))
    exported.loaded.pipe.set_progress_bar_config(disable=True)
    began = time.perf_counter()
    drawn = draw_images(
        exported.loaded, info, draw, lambda done, total: progress("sample", done, total)
    )
    seconds = time.perf_counter() - began
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid(drawn.images)).save(file, format="PNG")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from None
    used = [info.prompts[i % len(info.prompts)] for i in range(count)] if info.prompts else []
    return {
        "file": str(file),
        "images": count,
        "steps": draw.steps,
        "seed": seed,
        "prompts": used,
        "backend": exported.packed.backend,
        "seconds": round(seconds, 2),
        "noise_sha256": drawn.noise_sha256,
    }


def grid(images: Tensor) -> np.ndarray[Any, Any]:
    """Pictures in rows, as near to a square as it goes.

    Args:
        images: uint8, (N, 3, H, W), at least one.

    Returns:
        uint8, (height, width, 3).
    """
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    size = (channels, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP)
    canvas = torch.full(size, 255, dtype=torch.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        canvas[:, top : top + height, left : left + width] = image
    return canvas.permute(1, 2, 0).contiguous().numpy()
