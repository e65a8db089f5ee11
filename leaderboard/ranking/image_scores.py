"""Scores of single images: which metric judges a board, and how near two of them must be to tie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantarena.leaderboard.ranking.votes import Floats

FAMILIES = {"lpips": False, "ssim": True, "psnr": True}
"""Metrics that may judge a board, the preferred one first, and whether higher is better."""

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
