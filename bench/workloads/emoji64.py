"""The `emoji64` data set: 64x64 emoji drawings with captions, built from two npm tarballs.

Every emoji of six picture categories is there in two drawings, Noto (flat) and Fluent 3D, so
that a caption names both the thing and the style. A seeded part of the drawings is held out
before any training: never both drawings of one emoji, so that a held-out caption's words are known
to the trained models.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = [
    "CATEGORIES",
    "EmojiRecord",
    "build",
    "caption_of",
    "data_dir",
    "heldout_images",
    "load_images",
    "records",
]

log = logging.getLogger(__name__)

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
SPLIT_SEED = 2025
HELD_OUT = 300
STYLES = {"noto": "flat", "fluent": "3d"}

# Unicode names describe the glyph of the first printed charts ("HEAVY BLACK HEART" is the red one).
_RENAMED = {
    "heavy black heart": "red heart",
    "black sun with rays": "sun",
    "black telephone": "telephone",
    "white smiling face": "smiling face",
    "black spade suit": "spade suit",
    "black club suit": "club suit",
    "black heart suit": "heart suit",
    "black diamond suit": "diamond suit",
    "black scissors": "scissors",
    "white medium star": "star",
    "playing card black joker": "joker card",
}


@dataclass(frozen=True)
class EmojiRecord:
    """One drawing: a row of `captions.csv`."""

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


def _on_white(payload: bytes) -> Image.Image:
    """Composites a transparent drawing on white and brings it to 64 px."""
    with Image.open(io.BytesIO(payload)) as picture:
        rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    flat = Image.alpha_composite(white, rgba).convert("RGB")
    if flat.size != (SIZE, SIZE):
        flat = flat.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return flat


def _members(tarball: Path, prefix: str) -> Iterator[tuple[str, bytes]]:
    """Yields the (name without folder and ending, bytes) of the files below a prefix."""
    with tarfile.open(tarball) as archive:
        for member in archive:
            if member.isfile() and member.name.startswith(prefix):
                stream = archive.extractfile(member)
                if stream is not None:
                    yield Path(member.name).stem, stream.read()


def _metadata(noto_tarball: Path) -> list[dict[str, Any]]:
    """Reads the emoji table and keeps the six picture categories, in chart order."""
    table = dict(_members(noto_tarball, "package/emoji.json"))["emoji"]
    kept = [row for row in json.loads(table) if row["category"] in CATEGORIES]
    return sorted(kept, key=lambda row: (CATEGORIES.index(row["category"]), row["sort_order"]))


def _key(codepoints: str) -> str:
    """Returns the code points without variation selectors: the two packages differ in those."""
    return codepoints.lower().replace("-fe0f", "")


def _name(row: dict[str, Any]) -> str:
    """Returns the lower-case spoken name of an emoji."""
    name = str(row["name"]).lower().replace("\u201c", "").replace("\u201d", "")
    name = _RENAMED.get(name, name)
    return name.removesuffix(" symbol").removesuffix(" sign").strip()


def _hold_out(pairs: list[tuple[dict[str, Any], str]]) -> set[tuple[str, str]]:
    """Picks the held-out (code points, style) pairs: stratified, never both of one emoji."""
    rng = np.random.default_rng(SPLIT_SEED)
    both = {row["unified"] for row, style in pairs if style == "fluent"}
    emoji = [row for row, style in pairs if style == "noto" and row["unified"] in both]
    picked: set[tuple[str, str]] = set()
    for category in CATEGORIES:
        members = [row["unified"] for row in emoji if row["category"] == category]
        wanted = 2 * round(HELD_OUT * len(members) / len(emoji) / 2)
        for rank, index in enumerate(rng.permutation(len(members))[:wanted]):
            picked.add((members[index], ("noto", "fluent")[rank % 2]))
    return picked


def _webp(image: Image.Image) -> bytes:
    """Encodes an image as lossless WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def heldout_images(resolution: int) -> Tensor:
    """Held-out drawings, which no model of the zoo was trained on.

    Args:
        resolution: pixels a side, at most 64.

    Returns:
        uint8, (N, 3, resolution, resolution).
    """
    array = load_images(records("heldout"), resolution)
    images = torch.from_numpy(array)
    return images if images.shape[1] == 3 else images.permute(0, 3, 1, 2).contiguous()


def build(noto_tarball: Path, fluent_tarball: Path, out: Path) -> list[EmojiRecord]:
    """Builds the data set.

    Args:
        noto_tarball: npm tarball of `emoji-datasource-google` 16.0.0.
        fluent_tarball: npm tarball of `@lobehub/fluent-emoji-3d` 1.1.0.
        out: Folder that gets `images.zip` (lossless WebP, stored) and `captions.csv`.

    Returns:
        The rows written.
    """
    drawings = {
        "noto": {_key(k): v for k, v in _members(noto_tarball, "package/img/google/64/")},
        "fluent": {_key(k): v for k, v in _members(fluent_tarball, "package/assets/")},
    }
    pairs = [
        (row, style)
        for row in _metadata(noto_tarball)
        for style in STYLES
        if _key(row["unified"]) in drawings[style]
    ]
    held_out = _hold_out(pairs)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    with zipfile.ZipFile(out / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for row, style in pairs:
            key, name = _key(row["unified"]), _name(row)
            record = EmojiRecord(
                id=f"{style}-{key}",
                file=f"{style}/{key}.webp",
                style=style,
                name=name,
                caption=caption_of(name, style),
                category=row["category"],
                subcategory=row["subcategory"],
                split="heldout" if (row["unified"], style) in held_out else "train",
            )
            entry = zipfile.ZipInfo(record.file, date_time=(2025, 1, 1, 0, 0, 0))
            archive.writestr(entry, _webp(_on_white(drawings[style][key])))
            rows.append(record)
    with (out / "captions.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(EmojiRecord)])
        writer.writeheader()
        writer.writerows(vars(record) for record in rows)
    return rows


def main() -> None:
    """Command line: `python -m quantarena.bench.workloads.emoji64 NOTO.tgz FLUENT.tgz`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("noto", type=Path, help="emoji-datasource-google-16.0.0.tgz")
    parser.add_argument("fluent", type=Path, help="lobehub-fluent-emoji-3d-1.1.0.tgz")
    parser.add_argument("--out", type=Path, default=data_dir())
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for tarball in (args.noto, args.fluent):
        if not tarball.is_file():
            parser.error(f"no such tarball: {tarball} (get it with `npm pack`)")
    rows = build(args.noto, args.fluent, args.out)
    log.info("%d drawings, %d held out", len(rows), sum(row.split == "heldout" for row in rows))


if __name__ == "__main__":
    main()
