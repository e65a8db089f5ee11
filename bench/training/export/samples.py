"""Sample images of a trained pipeline, and sheets that show many images at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SAMPLES = 64
SAMPLE_SEED = 1234


def generators(count: int) -> list[torch.Generator]:
    """Returns one seeded CPU generator an image."""
    return [torch.Generator().manual_seed(SAMPLE_SEED + index) for index in range(count)]


def to_tensor(images: Any) -> Tensor:
    """Brings a pipeline's float images (N, H, W, 3) to uint8 (N, 3, H, W)."""
    pixels = torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)
    return (pixels.clamp(0, 1) * 255.0).round().to(torch.uint8)


def draw(pipeline: Any, settings: dict[str, Any], conditions: list[Any] | None) -> Tensor:
    """Draws SAMPLES images with the recommended settings, 32 at a time."""
    seeds, parts = generators(SAMPLES), []
    for start in range(0, SAMPLES, 32):
        stop = start + 32
        arguments: dict[str, Any] = {
            "generator": seeds[start:stop],
            "num_inference_steps": settings["steps"],
            "output_type": "np",
        }
        if conditions is None:
            arguments["batch_size"] = 32
        elif isinstance(conditions[0], str):
            arguments["prompt"] = conditions[start:stop]
            arguments["guidance_scale"] = settings["guidance"]
        else:
            arguments["class_labels"] = conditions[start:stop]
            arguments["guidance_scale"] = settings["guidance"]
        parts.append(to_tensor(pipeline(**arguments).images))
    return torch.cat(parts)


def grid(images: Tensor, columns: int = 8, zoom: int = 2) -> Image.Image:
    """Lays out uint8 images of shape (N, 3, H, W) in rows."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 255, np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        top, left = (index // columns) * (height + 2), (index % columns) * (width + 2)
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def side_by_side(samples: Tensor, real: Tensor) -> Image.Image:
    """Puts 64 samples (left) beside 64 real images (right)."""
    left, right = grid(samples[:64]), grid(real[:64])
    sheet = Image.new("RGB", (left.width + right.width + 24, left.height), "black")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + 24, 0))
    return sheet
