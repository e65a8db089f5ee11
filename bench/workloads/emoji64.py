"""Reads the committed data set `emoji64`: 64x64 emoji drawings with captions.

Each emoji comes in two drawings, Noto (flat) and Fluent 3D, so a caption names both the thing and
the style. `quantarena.bench.training.tasks.emoji_data` builds the data set and holds drawings out.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = [
    "CATEGORIES",
    "EmojiRecord",
    "caption_of",
    "data_dir",
    "heldout_images",
    "load_images",
    "records",
]


__sources__ = ("data/emoji64/*",)
"""The drawings and captions themselves: a score's key holds them."""
CATEGORIES = (
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Objects",
    "Activities",
    "Smileys & Emotion",
)
SIZE = 64
STYLES = {"noto": "flat", "fluent": "3d"}


@dataclass(frozen=True)
class EmojiRecord:
    """One drawing, a row of `captions.csv`."""

    id: str
    file: str
    style: str
    name: str
    caption: str
    category: str
    subcategory: str
    split: str


def data_dir() -> Path:
    """Returns the folder of the committed data set."""
    return Path(__file__).resolve().parent / "data" / "emoji64"


def caption_of(name: str, style: str) -> str:
    """Returns the caption of a drawing, for example `a red apple, 3d`."""
    article = "an" if name[0] in "aeiou" else "a"
    return f"{article} {name}, {STYLES[style]}"


def records(split: str | None = None, folder: Path | None = None) -> list[EmojiRecord]:
    """Reads `captions.csv`.

    Args:
        split: `train`, `heldout` or None for both.
        folder: The data set's folder; the committed one if None.

    Raises:
        FileNotFoundError: There is no data set in the folder.
        ValueError: The split's name is unknown.
    """
    if split not in (None, "train", "heldout"):
        raise ValueError(f"unknown split {split!r}: use train or heldout")
    path = (folder or data_dir()) / "captions.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no emoji64 data set at {path.parent}")
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [EmojiRecord(**row) for row in csv.DictReader(stream)]
    return [row for row in rows if split is None or row.split == split]


def load_images(
    rows: Iterable[EmojiRecord], size: int = SIZE, folder: Path | None = None
) -> np.ndarray:
    """Decodes drawings into one array.

    Args:
        rows: The drawings to read, in order.
        size: Side of the result in pixels; smaller sizes are Lanczos-resampled.
        folder: The data set's folder; the committed one if None.

    Returns:
        uint8 array of shape (N, size, size, 3).
    """
    images = []
    with zipfile.ZipFile((folder or data_dir()) / "images.zip") as archive:
        for row in rows:
            with Image.open(io.BytesIO(archive.read(row.file))) as picture:
                rgb = picture.convert("RGB")
            if size != rgb.width:
                rgb = rgb.resize((size, size), Image.Resampling.LANCZOS)
            images.append(np.asarray(rgb))
    return np.stack(images)


def heldout_images(resolution: int) -> Tensor:
    """Returns the held-out drawings, which no model of the zoo was trained on.

    Args:
        resolution: Side of the images in pixels, at most 64.

    Returns:
        uint8, (N, 3, resolution, resolution).
    """
    pixels = load_images(records("heldout"), resolution)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
