"""Intervals: resample the images, seeded and vectorised. No torch.

Counts are drawn once for a seed and a number of images, so every metric and every cell sees the
same resamples: differences between two methods are paired without further care. Images of one
prompt are drawn together.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95


Groups = tuple[int, ...]
"""The prompt, class or other unit of each image; images of one unit are not independent."""


@lru_cache(maxsize=4)
def resample_counts(
    n: int, resamples: int = RESAMPLES, seed: int = 0, groups: Groups | None = None
) -> Array:
    """How often each of ``n`` images is drawn in each resample.

    Args:
        n: images.
        resamples: how many.
        seed: of the draws.
        groups: unit of each image, at least ``n`` of them; whole units are drawn where some
            repeat. Units that all differ, and one unit alone, change nothing.

    Returns:
        (resamples, n); each row sums to ``n``, or to about that where units differ in size.
        Read-only, because it is shared.
    """
    members = np.arange(n) if groups is None else np.unique(groups[:n], return_inverse=True)[1]
    units = int(members.max()) + 1
    if units in (1, n):  # in the images' own order, as without units
        members, units = np.arange(n), n
    rng = np.random.default_rng([seed, units])
    drawn = rng.multinomial(units, np.full(units, 1.0 / units), size=resamples)
    counts = drawn[:, members].astype(np.float64)
    counts.setflags(write=False)
    return counts


def interval(replicates: Array, level: float = LEVEL) -> tuple[float, float]:
    """The central ``level`` of the replicates (percentile interval)."""
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def recentred_interval(
    value: float, replicates: Array, level: float = LEVEL
) -> tuple[float, float]:
    """The spread of the replicates, moved so that their mean is ``value``.

    For estimators that a resample biases once more (a resample has fewer distinct images, which
    widens a Frechet distance): the plain percentile interval may lie above the value itself.
    """
    low, high = interval(replicates, level)
    shift = value - float(replicates.mean())
    return low + shift, high + shift


def mean_interval(
    values: NDArray[np.floating],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Groups | None = None,
) -> tuple[float, float | None, float | None]:
    """Mean of per-image values and its 95 % interval.

    Args:
        values: (N,), one an image. Give the difference of two methods for a paired interval.
        seed: of the resamples.
        resamples: how many.
        groups: unit of each image, where some belong together.

    Returns:
        mean, low, high; low and high are None for one image, whose spread nobody knows.

    Raises:
        ValueError: no values, or some that are not finite.
    """
    exact = np.asarray(values, dtype=np.float64)
    if exact.ndim != 1 or exact.size == 0:
        raise ValueError(f"expected one value an image, got shape {exact.shape}")
    if not np.isfinite(exact).all():
        raise ValueError(f"{int((~np.isfinite(exact)).sum())} of {exact.size} values not finite")
    mean = float(exact.mean())
    if exact.size == 1:
        return mean, None, None
    # Around the mean, so that equal values give an interval of exactly no width.
    counts = resample_counts(exact.size, resamples, seed, groups)
    spread = counts @ (exact - mean) / counts.sum(1)
    low, high = interval(spread)
    return mean, mean + low, mean + high
