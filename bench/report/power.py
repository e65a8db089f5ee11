"""How many images tell two methods apart: the one formula of comparisons, gates and the board."""

import math

_POWER = 1.959964 + 0.841621
"""Sum of the normal quantiles of a two-sided 95 % interval and of 80 % power."""
BEYOND_REASON = 100_000
"""Largest number of images that is recommended to separate two methods.

It is twice as many as the papers score."""


def images_to_separate(mean: float, deviation: float, least: int = 2) -> int | None:
    """Number of images at which four of five runs would show a difference.

    ``n = ((1.96 + 0.84) deviation / mean)^2``: the 95 % interval of the mean of n paired
    differences then excludes zero with a probability of 80 %.

    Args:
        mean: estimated mean of the paired differences.
        deviation: standard deviation of one paired difference.
        least: smallest number that is returned.

    Returns:
        None where it is more than ``BEYOND_REASON`` or where the mean is 0.
    """
    if mean == 0 or not math.isfinite(mean) or not math.isfinite(deviation):
        return None
    wanted = (_POWER * deviation / mean) ** 2
    return max(least, math.ceil(wanted)) if wanted <= BEYOND_REASON else None
