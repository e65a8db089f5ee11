"""Images of the same seeds as data URIs, within a size limit. The browser draws differences."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from quantarena.bench.schema import Row, Status
from quantarena.leaderboard.page.lines import Line

LADDER = ((8, 128), (8, 96), (6, 96), (6, 64), (4, 64), (3, 48), (2, 32))
"""Number of images per contestant and their longest side in pixels, from the most to the least."""

BUDGET = 3_400_000
"""Characters of data URIs on one page: the page then stays below five megabytes."""


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """Images of one line.

    Attributes:
        line: the contestant.
        uris: data URIs by the number of the image; an empty string where there is no image.
    """

    line: Line
    uris: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images of the same seeds of all contestants of one board.

    Attributes:
        reference: full precision's images.
        others: images of each contestant.
        captions: prompt or class of each image.
        side: longest side of a stored image in pixels; small images are enlarged without blur.
        left_out: contestants without images, or whose images are beyond the size limit.
    """

    reference: Thumbnails
    others: tuple[Thumbnails, ...]
    captions: tuple[str, ...]
    side: int
    left_out: tuple[str, ...] = ()


def make_galleries(
    folder: Path, boards: Sequence[Sequence[Line]], *, budget: int = BUDGET
) -> tuple[Gallery | None, ...]:
    """One gallery per board; all galleries together stay within the budget.

    The first images by number are shown, never a selection. A board without images of full
    precision has no gallery, since there is nothing to compare with.

    Args:
        folder: the results folder.
        boards: the lines of each board.
        budget: characters of all data URIs.
    """
    shown = sum(bool(line.ok) for lines in boards for line in lines)
    for count, side in LADDER:
        samples = [_thumbnails(folder, fp, count, side) for lines in boards if (fp := _fp(lines))]
        sizes = [sum(map(len, sample.uris)) for sample in samples if any(sample.uris)]
        # Noisy images compress worse than those of full precision: half as much again is allowed.
        if not sizes or 1.5 * shown * sum(sizes) / len(sizes) <= budget:
            break
    spent = 0
    galleries = []
    for lines in boards:
        gallery = _gallery(folder, lines, count, side, budget - spent)
        galleries.append(gallery)
        if gallery:
            spent += sum(len(u) for t in (gallery.reference, *gallery.others) for u in t.uris)
    return tuple(galleries)


def _gallery(
    folder: Path, lines: Sequence[Line], count: int, side: int, budget: int
) -> Gallery | None:
    fp = _fp(lines)
    reference = _thumbnails(folder, fp, count, side) if fp else None
    if fp is None or reference is None or not any(reference.uris):
        return None
    left = budget - sum(map(len, reference.uris))
    if left < 0:
        return None
    others, left_out = [], []
    for line in lines:
        if line.is_fp or not line.ok:
            continue
        thumbs = _thumbnails(folder, line, count, side)
        cost = sum(map(len, thumbs.uris))
        if not cost or cost > left:
            left_out.append(f"{line.title} {line.bits}")
            continue
        left -= cost
        others.append(thumbs)
    row = _first_ok(fp)
    captions = tuple(_caption(row, number) for number in range(len(reference.uris)))
    return Gallery(reference, tuple(others), captions, _side(folder, row), tuple(left_out))


def _fp(lines: Sequence[Line]) -> Line | None:
    return next((line for line in lines if line.is_fp and line.ok), None)


def _first_ok(line: Line) -> Row:
    return next(row for row in line.rows if row.status is Status.OK)


def _paths(folder: Path, row: Row, count: int) -> list[Path]:
    name = row.artefacts.get("images")
    return [folder / name / f"{number:04d}.png" for number in range(count)] if name else []


def _thumbnails(folder: Path, line: Line, count: int, side: int) -> Thumbnails:
    uris = [_uri(path, side) for path in _paths(folder, _first_ok(line), count)]
    while uris and not uris[-1]:
        uris.pop()
    return Thumbnails(line, tuple(uris))


def _side(folder: Path, row: Row) -> int:
    for path in _paths(folder, row, 1):
        with Image.open(path) as image:
            return max(image.size)
    return 0


def _uri(path: Path, side: int) -> str:
    """A lossless WebP: amplified differences would show the artefacts of a lossy one."""
    try:
        with Image.open(path) as source:
            image = source.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError):
        return ""
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=60, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _caption(row: Row, number: int) -> str:
    """The prompt or class of an image where the row has it, otherwise its seed and number."""
    for name in ("prompts", "captions", "classes", "labels"):
        texts = row.workload.get(name)
        if isinstance(texts, list | tuple) and number < len(texts):
            return str(texts[number])
    return f"seed {row.cell.seed}, image {number}"
