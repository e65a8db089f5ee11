"""Ranks in metrics of a whole set of images, such as KID, by paired resamples.

Such a metric is one number for a cell, not one for an image. But all cells of a run are resampled
with the same images, so their bootstrap values form pairs: what a resample does to all methods
alike cancels in a difference.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from quantarena.bench.schema import Row, Status
from quantarena.bench.scores import REPLICATES
from quantarena.leaderboard.inference.order import SureOrder, pairs
from quantarena.leaderboard.inference.sign_flips import (
    BLOCK,
    FEWEST,
    adjusted,
    in_blocks,
    least_first,
)
from quantarena.leaderboard.inference.student import widening
from quantarena.leaderboard.ranking.read_results import FP_METHOD, contestant, load_scores
from quantarena.leaderboard.ranking.standings import bits_of, width_order
from quantarena.leaderboard.ranking.votes import Floats, Ints


@dataclass(frozen=True, slots=True)
class QualityStanding:
    """Where one contestant stands in one metric among those of its width and full precision.

    Attributes:
        contestant: ``method@bits``.
        metric: name of the metric.
        bits: the width; ``fp`` for full precision itself, which is ranked in every width and has
            its ranks among the settings of full precision here.
        best_rank: 1 plus the number of contestants that are surely better.
        worst_rank: number of contestants minus those that are surely worse.
        rivals: number of contestants of the width with full precision.
    """

    contestant: str
    metric: str
    bits: str
    best_rank: int
    worst_rank: int
    rivals: int


@dataclass(frozen=True, slots=True, eq=False)
class _Resampled:
    """A cell's metric, mean over seeds: its value, its bootstrap values (B,), and its images."""

    value: float
    replicates: Floats
    images: int
    higher_is_better: bool


def quality_standings(rows: Sequence[Row], folder: Path) -> tuple[QualityStanding, ...]:
    """Ranks of a board's cells in each metric that has resamples, metric by metric."""
    by_metric: dict[str, dict[str, list[_Resampled]]] = {}
    for row in rows:
        for metric, one in _resampled(row, folder).items():
            by_metric.setdefault(metric, {}).setdefault(contestant(row.cell), []).append(one)
    found: list[QualityStanding] = []
    for metric in sorted(by_metric):
        cells = {name: _over_seeds(seeds) for name, seeds in by_metric[metric].items()}
        widths = sorted({bits_of(name) for name in cells}, key=width_order)
        for bits in widths:
            reference = [name for name in cells if name.startswith(f"{FP_METHOD}@")]
            members = sorted({name for name in cells if bits_of(name) == bits} | set(reference))
            found += [
                standing
                for standing in _of_width(metric, bits, {name: cells[name] for name in members})
                if bits_of(standing.contestant) == bits
            ]
    return tuple(found)


def _resampled(row: Row, folder: Path) -> dict[str, _Resampled]:
    if row.status is not Status.OK:
        return {}
    try:
        scores = load_scores(folder, row)
    except ValueError:  # the fidelity board says so
        return {}
    found = {}
    for key, values in scores.items():
        figure = row.measurement(key.removeprefix(REPLICATES))
        if not key.startswith(REPLICATES) or figure is None or figure.value is None:
            continue
        if figure.n >= FEWEST and len(values) > 1 and np.isfinite(values).all():
            found[figure.name] = _Resampled(figure.value, values, figure.n, figure.higher_is_better)
    return found


def _over_seeds(seeds: Sequence[_Resampled]) -> _Resampled:
    """The mean over seeds. They share their resamples, so what prompts do to all of them stays."""
    length = min(len(one.replicates) for one in seeds)
    return _Resampled(
        float(np.mean([one.value for one in seeds])),
        np.mean([one.replicates[:length] for one in seeds], axis=0),
        seeds[0].images,
        seeds[0].higher_is_better,
    )


def _of_width(metric: str, bits: str, cells: Mapping[str, _Resampled]) -> list[QualityStanding]:
    names, members = tuple(cells), list(cells.values())
    count, length = len(names), min(len(one.replicates) for one in members)
    one, other = pairs(count)
    values = np.array([cell.value for cell in members])
    drawn = np.stack([cell.replicates[:length] for cell in members], axis=1)
    drawn -= drawn.mean(axis=0)
    gap, moved = values[one] - values[other], _spread_of_pairs(drawn)
    images = min(cell.images for cell in members)
    # a bootstrap of n images divides by n, not n - 1, and has normal tails, not Student's
    tails = widening(images - 1)
    spread = moved * tails * np.sqrt(images / (images - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = np.where(gap == 0, 0.0, np.abs(gap) / spread)
        order = least_first(seen)
        noise = _noise(drawn, one[order], other[order], moved[order])
        p = adjusted(order, chain([seen[None, order]], noise), length + 1)
    worse = -1 if members[0].higher_is_better else 1
    sure = SureOrder.of(count, worse * gap, p)
    return [
        QualityStanding(
            contestant=names[number],
            metric=metric,
            bits=bits,
            best_rank=sure.best(number),
            worst_rank=sure.worst(number),
            rivals=count,
        )
        for number in range(count)
    ]


def _spread_of_pairs(drawn: Floats) -> Floats:
    """(M,) standard deviation of the difference of each pair, from (B, N) centred resamples."""
    columns = np.ascontiguousarray(drawn.T)
    parts = [(columns[n] - columns[n + 1 :]).std(axis=1) for n in range(len(columns) - 1)]
    return np.concatenate(parts) if parts else np.empty(0)


def _noise(drawn: Floats, one: Ints, other: Ints, spread: Floats) -> Iterator[Floats]:
    """(b, M) size of each pair's difference over its deviation, some (B, N) resamples at a time.

    All blocks share their memory, as those of the sign flips do.
    """
    made, taken = np.empty((2, min(BLOCK, len(drawn)), len(one)))
    with np.errstate(divide="ignore"):
        unit = np.where(spread > 0, 1 / spread, 0.0)
    for some in in_blocks(drawn):
        block, rest = made[: len(some)], taken[: len(some)]
        np.take(some, one, axis=1, out=block, mode="clip")
        np.subtract(block, np.take(some, other, axis=1, out=rest, mode="clip"), out=block)
        yield np.multiply(np.abs(block, out=block), unit, out=block)
