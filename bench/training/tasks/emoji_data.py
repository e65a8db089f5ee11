"""Builds the data set `emoji64` from two npm tarballs.

    python -m quantarena.bench.training.tasks.emoji_data NOTO.tgz FLUENT.tgz

A seeded part of the drawings is held out before any training: never both drawings of one emoji, so
that the trained models know the words of a held-out caption.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from quantarena.bench.workloads.emoji64 import (
    CATEGORIES,
    SIZE,
    STYLES,
    EmojiRecord,
    caption_of,
    data_dir,
)

__all__ = ["build_dataset"]

log = logging.getLogger(__name__)

SPLIT_SEED = 2025
HELD_OUT = 300


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


def build_dataset(noto_tarball: Path, fluent_tarball: Path, out: Path) -> list[EmojiRecord]:
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
    """Command line: `python -m quantarena.bench.training.tasks.emoji_data NOTO.tgz FLUENT.tgz`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("noto", type=Path, help="emoji-datasource-google-16.0.0.tgz")
    parser.add_argument("fluent", type=Path, help="lobehub-fluent-emoji-3d-1.1.0.tgz")
    parser.add_argument("--out", type=Path, default=data_dir())
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for tarball in (args.noto, args.fluent):
        if not tarball.is_file():
            parser.error(f"no such tarball: {tarball} (get it with `npm pack`)")
    rows = build_dataset(args.noto, args.fluent, args.out)
    log.info("%d drawings, %d held out", len(rows), sum(row.split == "heldout" for row in rows))


if __name__ == "__main__":
    main()
