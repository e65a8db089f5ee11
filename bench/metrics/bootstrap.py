"""Bootstrap intervals over images, seeded and vectorised. No torch.

For a given seed and number of images the resamples are the same for every metric and every cell, so
differences between two methods are paired differences. Images of one prompt are drawn together.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95


Groups = tuple[int, ...]
"""The unit of each image, such as its prompt or class. Images of one unit are not independent."""


@lru_cache(maxsize=4)
def resample_counts(
    n: int, resamples: int = RESAMPLES, seed: int = 0, groups: Groups | None = None
) -> Array:
    """How many times each of ``n`` images is drawn in each resample.

    Args:
        n: number of images.
        resamples: number of resamples.
        seed: seed of the draws.
        groups: unit of each image, at least ``n`` of them. If units repeat, whole units are
            drawn. If all units differ, or there is one only, images are drawn.

    Returns:
        (resamples, n), read-only because it is shared. Each row sums to ``n``, or to about ``n``
        if units differ in size.
    """
    members = np.arange(n) if groups is None else np.unique(groups[:n], return_inverse=True)[1]
    units = int(members.max()) + 1
    if units in (1, n):  # draw images, in their own order
        members, units = np.arange(n), n
    rng = np.random.default_rng([seed, units])
    drawn = rng.multinomial(units, np.full(units, 1.0 / units), size=resamples)
    counts = drawn[:, members].astype(np.float64)
    counts.setflags(write=False)
    return counts


def interval(replicates: Array, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of the replicates that holds the share ``level`` of them."""
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def recentred_interval(
    value: float, replicates: Array, level: float = LEVEL
) -> tuple[float, float]:
    """The percentile interval of the replicates, shifted so that their mean is ``value``.

    This is for estimators that resampling biases: a resample has fewer distinct images, which
    enlarges a Frechet distance, so the plain percentile interval may lie above the value itself.
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
    """The mean of per-image values and its 95 % interval.

    Args:
        values: (N,), one per image. Differences of two methods give a paired interval.
        seed: seed of the resamples.
        resamples: number of resamples.
        groups: unit of each image, if images belong together.

    Returns:
        mean, low and high. Low and high are None for one image, which has no spread.

    Raises:
        ValueError: there are no values, or some are not finite.
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
