"""Draws images with an exported model and writes them as one picture: the verb ``sample``."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.image_folder import strip
from quantarena.bench.ship.pipeline_folder import ExportedPipeline, workload_of
from quantarena.bench.stages.quantize import Progress
from quantarena.bench.workloads.sampling import Draw, batch_of, draw_images

BATCH = 8
GAP = 2
"""White pixels between the images of a grid."""


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
    """Draw images with an exported model and write them as one PNG.

    The noise is that of the evaluation images of the same workload and seed: a model of the zoo
    draws the images that its row shows.

    Args:
        exported: the model.
        folder: the folder it was loaded from.
        file: the PNG file to write.
        count: number of images.
        prompts: prompts or class numbers; if empty, those stored with the model.
        seed: seed of the noise.
        steps: sampler steps; 0 for the model's own number.
        progress: called with (stage, done, total).

    Returns:
        What was drawn, as plain JSON types.

    Raises:
        UserError: the model cannot take the prompts, or the file cannot be written.
    """
    info = workload_of(exported, folder)
    if prompts and info.conditions == "none":
        raise UserError(f"{folder} draws without prompts: leave --prompt out")
    if info.conditions == "class" and not all(p.strip().isdecimal() for p in prompts):
        raise UserError(f"{folder} takes class numbers as --prompt, such as --prompt 3")
    if prompts:
        info = replace(info, prompts=prompts)
    batch = batch_of(exported.loaded.pipe, info, min(BATCH, count))
    draw = Draw("evaluate", count, seed, steps or info.steps, batch)
    exported.loaded.pipe.set_progress_bar_config(disable=True)
    began = time.perf_counter()
    drawn = draw_images(
        exported.loaded, info, draw, lambda done, total: progress("sample", done, total)
    )
    seconds = time.perf_counter() - began
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        shown = drawn.images
        if drawn.frames:
            videos = shown.reshape(-1, drawn.frames, *shown.shape[1:]).unbind(0)
            shown = torch.stack([torch.from_numpy(strip(v)).permute(2, 0, 1) for v in videos])
        Image.fromarray(grid(shown)).save(file, format="PNG")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from None
    used = [info.prompts[i % len(info.prompts)] for i in range(count)] if info.prompts else []
    return {
        "file": str(file),
        "images": count,
        **({"frames": drawn.frames} if drawn.frames else {}),
        "steps": draw.steps,
        "seed": seed,
        "prompts": used,
        "backend": exported.packed.backend,
        "seconds": round(seconds, 2),
        "noise_sha256": drawn.noise_sha256,
    }


def grid(images: Tensor) -> np.ndarray[Any, Any]:
    """Put images in rows, as near to a square as possible.

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
