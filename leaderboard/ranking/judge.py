"""The automatic fidelity judge: who is nearest to full precision, image by image.

Full precision is the reference and never competes. The judge is deterministic, so asking it twice
adds nothing: no (prompt, set of contestants) is ever repeated. It sees fidelity only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantarena.leaderboard.ranking.votes import Floats, Vote

FAMILIES = {"lpips": False, "ssim": True, "psnr": True}
"""Metrics a fidelity judge may use, best first, and whether higher is better."""

FALLBACK_MARGIN = {"lpips": 1e-3, "ssim": 1e-3, "psnr": 0.1}
"""Tie margins where full precision was not measured against itself."""


@dataclass(frozen=True, slots=True)
class Margin:
    """Gap below which two images are tied, and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """Per-image scores of one board.

    Attributes:
        metric: name of the measurement.
        higher_is_better: its direction.
        contestants: row names of ``values``.
        units: of each column what a bootstrap resamples: its prompt, the same name for all images
            of a prompt; or its seed and image where there are no prompts.
        values: (N, U) scores, NaN where a contestant has no such image.
        floor: scores of full precision in another number format against itself.
    """

    metric: str
    higher_is_better: bool
    contestants: tuple[str, ...]
    units: tuple[str, ...]
    values: Floats
    floor: Floats


def pick_metric(scores: Sequence[Mapping[str, Floats]]) -> str | None:
    """The best metric that most contestants have, by family, then by name."""
    for family in FAMILIES:
        names = {name for found in scores for name in found if name.split("/")[0] == family}
        if names:
            return max(sorted(names), key=lambda name: sum(name in found for found in scores))
    return None


def tie_margin(table: ScoreTable) -> Margin:
    """The median distance of full precision from itself in another number format.

    A gap below it is what rounding the reference would do to a typical image. The median, not a
    high quantile: a few images fall on either side of a decision of the sampler, and their
    distance would tie everything.
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
    """Names in tiers, best first.

    A tier holds everything within ``margin`` of its best member, so a tier is never wider than
    the margin: near neighbours do not chain into one big tie.
    """
    sign = -1.0 if higher_is_better else 1.0
    ordered = sorted(scores, key=lambda name: (sign * scores[name], name))
    found: list[list[str]] = []
    head = 0.0
    for name in ordered:
        value = sign * scores[name]
        if found and (value == head or value - head <= margin):
            found[-1].append(name)
        else:
            found.append([name])
            head = value
    return tuple(tuple(sorted(tier)) for tier in found)


def cast_votes(
    table: ScoreTable, margin: Margin, *, size: int = 4, rounds: int = 2, seed: int = 0
) -> tuple[Vote, ...]:
    """Votes on seeded sets of ``size`` contestants, all of them where there are fewer.

    Each round deals every contestant of a prompt into a set once; the last set of a round is
    filled up from the start of the deal. A set that the prompt already had is left out.
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
    """(N,) mean rank over prompts from the full table, ties sharing their mean place."""
    total = np.zeros(len(table.contestants))
    seen = np.zeros(len(table.contestants))
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
                seen[index[name]] += 1
            place += len(tier)
    return np.where(seen > 0, total / np.maximum(seen, 1), np.nan)
