"""Images of the same seeds as data URIs, within a size limit. The browser draws differences."""

import base64
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from quantarena.bench.files import require_regular
from quantarena.bench.schema import Row, Status
from quantarena.leaderboard.page.lines import Line

LADDER = ((8, 128), (8, 96), (6, 96), (6, 64), (4, 64), (3, 48), (2, 32))
"""Number of images per contestant and their longest side in pixels, from the most to the least."""

BUDGET = 3_400_000
"""Characters of data URIs on one page: the page then stays below five megabytes."""

MOST_MISSES = 8
"""A board whose next so many contestants have no room is full: further ones are not even read."""

MOST_PIXELS = 1 << 26
"""Largest image that is read: a small file can claim any size."""


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """Images of one line.

    Attributes:
        line: the contestant.
        uris: data URIs by the number of the image; an empty string where there is no image.
        problems: one line for each image that is there and cannot be read.
    """

    line: Line
    uris: tuple[str, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images of the same seeds of all contestants of one board.

    Attributes:
        reference: full precision's images.
        others: images of each contestant.
        captions: prompt or class of each image.
        side: longest side of a stored image in pixels; small images are enlarged without blur.
        left_out: contestants without images, or whose images are beyond the size limit.
        problems: one line for each image that cannot be read.
    """

    reference: Thumbnails
    others: tuple[Thumbnails, ...]
    captions: tuple[str, ...]
    side: int
    left_out: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


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


def repeated(galleries: Sequence[Gallery | None]) -> dict[str, str]:
    """CSS names of the images that a page shows more than once, by data URI.

    Full precision's images are the same on the boards of all policies: they are written once.
    """
    shown = [g for g in galleries if g and g.captions]
    thumbs = [thumbs for g in shown for thumbs in (g.reference, *g.others)]
    times = Counter(uri for one in thumbs for uri in one.uris if uri)
    several = [uri for uri, count in times.items() if count > 1]
    return {uri: f"--u{number}" for number, uri in enumerate(several)}


def _gallery(
    folder: Path, lines: Sequence[Line], count: int, side: int, budget: int
) -> Gallery | None:
    fp = _fp(lines)
    reference = _thumbnails(folder, fp, count, side) if fp else None
    if fp is None or reference is None:
        return None
    if not any(reference.uris):
        damaged = reference.problems
        return Gallery(reference, (), (), 0, problems=damaged) if damaged else None
    left = budget - sum(map(len, reference.uris))
    if left < 0:
        return None
    others, left_out, problems = [], [], list(reference.problems)
    misses = 0
    for line in lines:
        if line.is_fp or not line.ok:
            continue
        if misses == MOST_MISSES:
            left_out.append(f"{line.title} {line.bits}")
            continue
        thumbs = _thumbnails(folder, line, count, side, left)
        problems += thumbs.problems
        cost = sum(map(len, thumbs.uris))
        misses = misses + 1 if cost > left else 0
        if not cost or misses:
            left_out.append(f"{line.title} {line.bits}")
            continue
        left -= cost
        others.append(thumbs)
    row = _first_ok(fp)
    captions = tuple(caption(row, number) for number in range(len(reference.uris)))
    pixels = _side(folder, row, len(captions))
    return Gallery(reference, tuple(others), captions, pixels, tuple(left_out), tuple(problems))


def _fp(lines: Sequence[Line]) -> Line | None:
    return next((line for line in lines if line.is_fp and line.ok), None)


def _first_ok(line: Line) -> Row:
    return next(row for row in line.rows if row.status is Status.OK)


def _paths(folder: Path, row: Row, count: int) -> list[Path]:
    name = row.artefacts.get("images")
    return [folder / name / f"{number:04d}.png" for number in range(count)] if name else []


def _thumbnails(
    folder: Path, line: Line, count: int, side: int, most: float = math.inf
) -> Thumbnails:
    """A line's images; what comes after the one that exceeds ``most`` characters is not read."""
    uris: list[str] = []
    problems = []
    for path in _paths(folder, _first_ok(line), count):
        if sum(map(len, uris)) > most:
            break
        try:
            uris.append(_uri(path, side))
        except FileNotFoundError:
            uris.append("")
        except ValueError as error:
            uris.append("")
            problems.append(f"{line.title} {line.bits}, {path.name}: {error}")
    while uris and not uris[-1]:
        uris.pop()
    return Thumbnails(line, tuple(uris), tuple(problems))


def _side(folder: Path, row: Row, count: int) -> int:
    """Longest side in pixels of the first image that can be read."""
    for path in _paths(folder, row, count):
        try:
            return max(open_image(path).size)
        except (FileNotFoundError, ValueError):
            continue
    return 0


def open_image(path: Path) -> Image.Image:
    """An image in RGB.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, or is too large; one line says why.
    """
    try:
        require_regular(path, path)
        with Image.open(path) as source:
            if source.width * source.height > MOST_PIXELS:
                raise ValueError(f"{source.width} x {source.height} pixels are too many to show")
            return source.convert("RGB")
    except FileNotFoundError:
        raise
    except Exception as error:  # PIL raises many types on damaged bytes
        raise ValueError(str(error) or type(error).__name__) from None


def _uri(path: Path, side: int) -> str:
    """A lossless WebP: amplified differences would show the artefacts of a lossy one.

    Its method 2 takes a sixth of the time of method 4, for files that are a twentieth larger.
    """
    image = open_image(path)
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=60, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def caption(row: Row, number: int) -> str:
    """The prompt or class of an image where the row has it, otherwise its seed and number."""
    for name in ("prompts", "captions", "classes", "labels"):
        texts = row.workload.get(name)
        if isinstance(texts, list | tuple) and number < len(texts):
            return str(texts[number])
    return f"seed {row.cell.seed}, image {number}"
