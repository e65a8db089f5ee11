"""How ranks change: with each run alone, and with each prompt left out.

These are no intervals and no tests. They show on what a rank hangs: on one seed, or on one prompt.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantarena.leaderboard.inference.order import least_ranks
from quantarena.leaderboard.ranking.votes import Floats


@dataclass(frozen=True, slots=True)
class Flow:
    """Ranks of one contestant by its mean score, among those of its width.

    Attributes:
        whole: with all images.
        by_run: with the images of each run alone, in the order of the seeds; None where it has no
            image of that run. Empty where there is one run.
        left_best: the best rank that it has with one prompt left out.
        left_worst: the worst one.
    """

    whole: int
    by_run: tuple[int | None, ...]
    left_best: int
    left_worst: int


def flows(scores: Floats, units: tuple[str, ...], runs: tuple[int, ...]) -> tuple[Flow, ...]:
    """The flow of each of N contestants.

    Args:
        scores: (N, U) score of each image, the smaller the better, NaN where there is none.
        units: name of each image's prompt, or of the image where there are no prompts.
        runs: seed of each image.
    """
    names, place = np.unique(np.array(units), return_inverse=True)
    seeds, seed = np.unique(np.array(runs), return_inverse=True)
    whole = _ranks(_sums(scores, np.zeros(len(runs), dtype=np.intp), 1))[:, 0]
    alone = _ranks(_sums(scores, seed, len(seeds)))
    total, count = _sums(scores, place, len(names))
    left = _ranks((total.sum(axis=1, keepdims=True) - total, count.sum(axis=1)[:, None] - count))
    if len(names) == 1:  # nothing is left without its only prompt
        left = whole[:, None]
    return tuple(
        Flow(
            int(whole[n]),
            tuple(_rank(r) for r in alone[n]) if len(seeds) > 1 else (),
            int(np.nanmin(left[n])),
            int(np.nanmax(left[n])),
        )
        for n in range(len(scores))
    )


def _sums(scores: Floats, place: NDArray[np.intp], size: int) -> tuple[Floats, Floats]:
    """(N, size) sum and number of the known scores of each group of images."""
    member = (place[:, None] == np.arange(size)).astype(float)
    known = np.isfinite(scores)
    return np.where(known, scores, 0.0) @ member, known.astype(float) @ member


def _ranks(sums: tuple[Floats, Floats]) -> Floats:
    """(N, size) ranks of the means in each column, NaN where a contestant has none."""
    total, count = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        # rounded: equal scores that were added in another order are equal
        means = np.round(np.where(count > 0, total / count, np.nan), 12)
    return np.where(np.isnan(means), np.nan, least_ranks(np.nan_to_num(means, nan=np.inf)))


def _rank(value: float) -> int | None:
    return None if np.isnan(value) else int(value)
