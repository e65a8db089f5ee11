"""The automatic fidelity judge: it votes for what is nearest to full precision, image by image.

Full precision is the reference and never competes. The judge is deterministic, so no set of
contestants is compared twice on one prompt. It looks at fidelity only, never at quality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantarena.leaderboard.ranking.votes import Floats, Vote

FAMILIES = {"lpips": False, "ssim": True, "psnr": True}
"""Metrics that the judge may use, the preferred one first, and whether higher is better."""

FALLBACK_MARGIN = {"lpips": 1e-3, "ssim": 1e-3, "psnr": 0.1}
"""Tie margins for boards where full precision was not measured against itself."""


@dataclass(frozen=True, slots=True)
class Margin:
    """Difference in the metric up to which two images are tied.

    Attributes:
        value: that difference.
        source: how it was found, in words.
    """

    value: float
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """Per-image scores of one board: N contestants by U images.

    Attributes:
        metric: name of the measurement.
        higher_is_better: whether a larger score is nearer to full precision.
        contestants: names of the N rows of ``values``.
        units: name of the unit of evidence of each of the U columns, which is what a bootstrap
            resamples: the prompt, shared by all its images; or the image and its seed where
            there are no prompts.
        values: (N, U) scores, NaN where a contestant has no such image.
        runs: seed of each of the U columns.
        floor: (U,) scores of full precision with bfloat16 weights against full precision.
    """

    metric: str
    higher_is_better: bool
    contestants: tuple[str, ...]
    units: tuple[str, ...]
    runs: tuple[int, ...]
    values: Floats
    floor: Floats


def pick_metric(scores: Sequence[Mapping[str, Floats]]) -> str | None:
    """The most preferred metric that any contestant has; among its variants the most common."""
    for family in FAMILIES:
        names = {name for one in scores for name in one if name.split("/")[0] == family}
        if names:
            return max(sorted(names), key=lambda name: sum(name in one for one in scores))
    return None


def tie_margin(table: ScoreTable) -> Margin:
    """The median distance of full precision with bfloat16 weights from full precision.

    A smaller difference is no larger than what rounding the reference does to a typical image. A
    high quantile would not do: rounding moves a few images across a decision of the sampler, and
    with their distance as the margin everything would tie.
    """
    family = table.metric.split("/")[0]
    fallback = FALLBACK_MARGIN.get(family, 0.0)
    floor = table.floor[np.isfinite(table.floor)]
    if family == "lpips" and len(floor):
        return Margin(
            max(float(np.median(floor)), 1e-6),
            f"median {table.metric} of full precision against itself in another number format, "
            f"{len(floor)} images",
        )
    return Margin(fallback, "fixed: full precision was not measured against itself")


def tiers(
    scores: Mapping[str, float], margin: float, *, higher_is_better: bool = False
) -> tuple[tuple[str, ...], ...]:
    """Names in tiers of ties, the best tier first.

    A tier holds everything within ``margin`` of its best member. It is never wider than the
    margin, so that near neighbours do not chain into one large tie.
    """
    sign = -1.0 if higher_is_better else 1.0
    ordered = sorted(scores, key=lambda name: (sign * scores[name], name))
    groups: list[list[str]] = []
    head = 0.0
    for name in ordered:
        value = sign * scores[name]
        if groups and (value == head or value - head <= margin):
            groups[-1].append(name)
        else:
            groups.append([name])
            head = value
    return tuple(tuple(sorted(tier)) for tier in groups)


def cast_votes(
    table: ScoreTable, margin: Margin, *, size: int = 4, rounds: int = 2, seed: int = 0
) -> tuple[Vote, ...]:
    """Votes on random sets of contestants, for each image of the table.

    A round deals each contestant that has the image into one set. The last set of a round is
    filled up from the start of the deal, and a set that the image already had is left out.

    Args:
        table: the scores.
        margin: difference up to which two images are tied.
        size: contestants per set; all of them where there are fewer.
        rounds: number of deals per image.
        seed: of the deals.
    """
    rng = np.random.default_rng(seed)
    names = np.array(table.contestants)
    votes = []
    for column, unit in enumerate(table.units):
        present = np.flatnonzero(~np.isnan(table.values[:, column]))
        asked: set[tuple[int, ...]] = set()
        for _ in range(rounds):
            deal = rng.permutation(present)
            if len(deal) < 2:
                continue
            width = min(size, len(deal))
            filled = np.concatenate([deal, deal[: -len(deal) % width]])
            for group in filled.reshape(-1, width):
                members = tuple(sorted(int(number) for number in group))
                if members in asked:
                    continue
                asked.add(members)
                scores = {str(names[m]): float(table.values[m, column]) for m in members}
                ranked = tiers(scores, margin.value, higher_is_better=table.higher_is_better)
                votes.append(Vote(unit, tuple(scores), ranked, table.metric))
    return tuple(votes)


def mean_ranks(table: ScoreTable, margin: Margin) -> Floats:
    """Mean rank of each contestant over all images, (N,); ties share their mean place."""
    total = np.zeros(len(table.contestants))
    images = np.zeros(len(table.contestants))
    index = {name: number for number, name in enumerate(table.contestants)}
    for column in range(len(table.units)):
        scores = {
            name: float(value)
            for name, value in zip(table.contestants, table.values[:, column], strict=True)
            if not np.isnan(value)
        }
        place = 1
        for tier in tiers(scores, margin.value, higher_is_better=table.higher_is_better):
            for name in tier:
                total[index[name]] += place + (len(tier) - 1) / 2
                images[index[name]] += 1
            place += len(tier)
    return np.where(images > 0, total / np.maximum(images, 1), np.nan)
