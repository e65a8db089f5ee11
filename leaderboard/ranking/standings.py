"""Where each contestant of a board stands: tests of the whole table, width by width.

Every contestant drew every image, so nothing is sampled and nothing is dealt: at each width all
pairs are compared on all prompts. The score of an image is the logarithm of its loss, so that a
method which halves the loss of easy images counts as much as one which halves that of hard ones.
The share of images won is tested beside it: it does not see by how much, the mean does.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantarena.bench.report.power import images_to_separate
from quantarena.leaderboard.inference.order import SureOrder, pairs
from quantarena.leaderboard.inference.run_effects import FEWEST_RUNS, equal_means_over_runs
from quantarena.leaderboard.inference.sign_flips import FEWEST, equal_means, mean_bounds
from quantarena.leaderboard.ranking.flow import Flow, flows
from quantarena.leaderboard.ranking.image_scores import Margin, ScoreTable
from quantarena.leaderboard.ranking.votes import Floats, Ints

COLLAPSE, COLLAPSE_IMAGES = 0.5, 20
"""A method collapses where a twentieth of its images, of 20 at least, make half of its loss."""
TAIL = 0.9
"""Quantile of the image losses that stands for a method's bad images."""


@dataclass(frozen=True, slots=True)
class Tie:
    """A contestant that another cannot be told from.

    Attributes:
        contestant: ``method@bits``.
        images: number of images at which four of five runs would tell the two apart; None where
            nobody would take so many, or the number is unknown.
    """

    contestant: str
    images: int | None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one contestant stands among those of its width.

    Attributes:
        contestant: ``method@bits``.
        method: name of the method.
        bits: requested bits.
        factor: its typical (geometric mean) loss as a multiple of that of the width's leader.
        factor_low: lower end of the 95 % interval of this factor; None with fewer than six units.
        factor_high: upper end.
        wins: share of images, over all others of the width, on which it is nearer to full
            precision; ties count half.
        tail: the loss that a tenth of its images exceed.
        worst: its largest loss.
        worst_share: share of its total loss that its worst twentieth of images makes.
        best_rank: 1 plus the number of contestants of the width that are surely nearer.
        worst_rank: number of contestants of the width minus those that are surely farther.
        wins_best: as ``best_rank``, by the share of images won.
        wins_worst: as ``worst_rank``, by the share of images won.
        rivals: number of contestants of the width, itself included.
        ties: the contestants of the width that it cannot be told from by mean log loss.
        units: number of prompts (or of images, without prompts) that it has scores for.
        images: number of images that it has scores for.
        flow: its rank by the mean with each run alone, and with each prompt left out.
    """

    contestant: str
    method: str
    bits: str
    factor: float
    factor_low: float | None
    factor_high: float | None
    wins: float
    tail: float
    worst: float
    worst_share: float
    best_rank: int
    worst_rank: int
    wins_best: int
    wins_worst: int
    rivals: int
    ties: tuple[Tie, ...]
    units: int
    images: int
    flow: Flow

    @property
    def span(self) -> tuple[float, float]:
        """The interval of the factor; without one its ends are the factor."""
        low, high = self.factor_low, self.factor_high
        return (low or self.factor, high or self.factor)

    @property
    def collapses(self) -> bool:
        """True where a few images make most of the loss: a mean hides them."""
        return self.images >= COLLAPSE_IMAGES and self.worst_share >= COLLAPSE


def standings(table: ScoreTable, margin: Margin) -> tuple[Standing, ...]:
    """The standings of a board, width by width, the widest first, and the nearest first in each."""
    loss = log_loss(table, margin)
    widths = sorted({bits_of(name) for name in table.contestants}, key=width_order)
    found: list[Standing] = []
    for bits in widths:
        members = [n for n, name in enumerate(table.contestants) if bits_of(name) == bits]
        found += _of_width(table, np.array(members), loss[members], margin, bits)
    return tuple(found)


def bits_of(contestant: str) -> str:
    """The requested bits in the name of a contestant."""
    return contestant.rsplit("@", 1)[1]


def width_order(bits: str) -> tuple[float, float, str]:
    """Sorts widths such as ``w4a8``: more bits of weights first, then of activations."""
    match = re.fullmatch(r"w(\d+)a(\d+)", bits)
    return (-float(match[1]), -float(match[2]), bits) if match else (-np.inf, 0.0, bits)


def log_loss(table: ScoreTable, margin: Margin) -> Floats:
    """(N, U) logarithm of each image's loss; losses below the margin are equal to it.

    The loss is the distance itself, one minus SSIM, or the root mean square error that a PSNR in
    decibel stands for (up to a constant).
    """
    family = table.metric.split("/")[0]
    if family == "psnr":
        return np.asarray(-np.log(10) / 20 * table.values)
    loss = 1 - table.values if table.higher_is_better else table.values
    return np.asarray(np.log(np.maximum(loss, max(margin.value, 1e-12))))


def fold(scores: Floats, units: tuple[str, ...], runs: tuple[int, ...]) -> Floats:
    """Gather the scores of images by what is independent of one another.

    Without prompts each image of each run is a unit of its own. From ``FEWEST_RUNS`` runs on a run
    is the unit then, because its images share a calibration.

    Args:
        scores: (M, U) a score for each image, NaN where there is none.
        units: name of each image's prompt.
        runs: seed of each image.

    Returns:
        (M, n) mean score of each unit; (M, n, S) of each prompt in each run, where runs are many
        and share their prompts.
    """
    names, seeds = np.array(units), np.array(runs)
    if len(set(runs)) < FEWEST_RUNS:
        return _means(scores, names)
    prompts = [set(names[seeds == seed]) for seed in sorted(set(runs))]
    shared = sorted(set.intersection(*prompts))
    if not shared:
        return _means(scores, seeds)
    parts = []
    for seed in sorted(set(runs)):
        here = (seeds == seed) & np.isin(names, shared)
        parts.append(_means(scores[:, here], names[here]))
    return np.stack(parts, axis=2)


def _means(scores: Floats, keys: NDArray[Any]) -> Floats:
    """(M, n) mean of the known scores of each distinct key, NaN where there are none."""
    _, place = np.unique(keys, return_inverse=True)
    member = (place[:, None] == np.arange(place.max() + 1)).astype(float)
    known = np.isfinite(scores)
    count = known.astype(float) @ member
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, np.where(known, scores, 0.0) @ member / count, np.nan)


def _judge(gaps: Floats, table: ScoreTable, count: int) -> SureOrder:
    """The order of N contestants by their pairs' (M, U) differences by image."""
    folded = fold(gaps, table.units, table.runs)
    p = equal_means(folded) if folded.ndim == 2 else equal_means_over_runs(folded)
    mean = np.nanmean(folded.reshape(len(folded), -1), axis=1) if len(folded) else np.empty(0)
    return SureOrder.of(count, mean, p)


def _of_width(
    table: ScoreTable, members: Ints, loss: Floats, margin: Margin, bits: str
) -> list[Standing]:
    count, raw = len(members), table.values[members]
    one, other = pairs(count)
    by_mean = _judge(loss[one] - loss[other], table, count)
    toward = -1 if table.higher_is_better else 1  # makes larger worse
    lost = np.sign(raw[one] - raw[other]) * toward
    lost *= np.abs(raw[one] - raw[other]) > margin.value
    by_wins = _judge(lost, table, count)
    share = np.full((count, count), np.nan)
    share[one, other] = (1 - np.nanmean(lost, axis=1)) / 2
    share[other, one] = 1 - share[one, other]
    mean = np.nanmean(loss, axis=1)
    order = np.argsort(mean, kind="stable")
    by_unit = _means(loss, np.array(table.units))
    behind = loss - loss[order[0]]
    low, high = mean_bounds(_means(behind, np.array(table.units)))
    found = []
    _, place = np.unique(np.array(table.units), return_inverse=True)
    tied = by_mean.ties[:, order]
    flow = flows(loss, table.units, table.runs)
    for number in order:
        known = np.isfinite(loss[number])
        images = int(known.sum())
        bad = np.sort(raw[number][known] * toward)
        others = order[tied[number]]
        wanted = _images_to_separate(by_unit[others] - by_unit[number], images)
        names = (table.contestants[members[other]] for other in others)
        ties = tuple(Tie(name, images) for name, images in zip(names, wanted, strict=True))
        name = table.contestants[members[number]]
        found.append(
            Standing(
                contestant=name,
                method=name.rsplit("@", 1)[0],
                bits=bits,
                factor=float(np.exp(np.nanmean(behind[number]))),
                factor_low=_end(low[number]),
                factor_high=_end(high[number]),
                wins=float(np.nanmean(share[number])) if count > 1 else 0.5,
                tail=toward * float(np.quantile(bad, TAIL)),
                worst=toward * float(bad[-1]),
                worst_share=_worst_share(np.exp(loss[number][known])),
                best_rank=by_mean.best(number),
                worst_rank=by_mean.worst(number),
                wins_best=by_wins.best(number),
                wins_worst=by_wins.worst(number),
                rivals=count,
                ties=ties,
                units=int(np.count_nonzero(np.bincount(place[known]))),
                images=images,
                flow=flow[number],
            )
        )
    return found


def _images_to_separate(gaps: Floats, images: int) -> list[int | None]:
    """Images at which a test of each of K pairs has a power of 80 %, more than there are.

    Args:
        gaps: (K, n) differences by unit, NaN where one of the two has no score.
        images: number of images behind them.
    """
    known = np.isfinite(gaps)
    count = known.sum(axis=1)
    enough = np.maximum(count, 2)
    mean = np.where(known, gaps, 0.0).sum(axis=1) / enough
    square = np.square(np.where(known, gaps - mean[:, None], 0.0)).sum(axis=1) / (enough - 1)
    # the deviation of one image whose mean over all has the error that the units have
    deviation = np.sqrt(square / enough * images)
    return [
        images_to_separate(m, d, images + 1) if n >= FEWEST else None
        for m, d, n in zip(mean.tolist(), deviation.tolist(), count.tolist(), strict=True)
    ]


def _end(log_factor: float) -> float | None:
    return float(np.exp(log_factor)) if np.isfinite(log_factor) else None


def _worst_share(losses: Floats) -> float:
    """Share of the total that the largest twentieth makes, of one image at least."""
    few = max(1, round(len(losses) / 20))
    return float(np.sort(losses)[-few:].sum() / losses.sum())
