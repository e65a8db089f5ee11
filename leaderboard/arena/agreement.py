"""Krippendorff's alpha: how far several judges agree beyond what chance gives.

    alpha = 1 - D_o / D_e

of the observed and the expected disagreement of two values that two judges gave to one unit, with
the ordinal distance of Krippendorff, Content Analysis (2004), chapter 11: two levels are as far
apart as the values that lie between them are many. 1 is full agreement, 0 is chance. Judges may
leave any unit out.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from quantarena.leaderboard.ranking.votes import Floats


def ordinal_alpha(units: Iterable[Sequence[int]]) -> float | None:
    """The ordinal alpha of ratings.

    Args:
        units: for each unit the values that judges gave to it, one for each judge, on an ordered
            scale. A unit with one value says nothing of agreement and is left out.

    Returns:
        None where no unit has two values, or where all values are equal: there is nothing that
        judges could have disagreed about.
    """
    shared = [values for values in units if len(values) > 1]
    levels, place = np.unique([v for values in shared for v in values], return_inverse=True)
    if len(levels) < 2:
        return None
    coincidences = np.zeros((len(levels), len(levels)))
    start = 0
    for values in shared:
        count = np.bincount(place[start : start + len(values)], minlength=len(levels))
        start += len(values)
        pairs = np.outer(count, count) - np.diag(count)
        coincidences += pairs / (len(values) - 1)
    totals = coincidences.sum(axis=1)
    distance = _ordinal(totals)
    whole = totals.sum()
    expected = (np.outer(totals, totals) * distance).sum() / (whole - 1)
    return float(1 - (coincidences * distance).sum() / expected)


def _ordinal(totals: Floats) -> Floats:
    """(L, L) squared ordinal distance of levels with so many values each."""
    upto = np.cumsum(totals)
    level = np.arange(len(totals))
    low, high = np.minimum.outer(level, level), np.maximum.outer(level, level)
    between = upto[high] - upto[low] + totals[low]
    return np.asarray(np.square(between - (totals[low] + totals[high]) / 2))
