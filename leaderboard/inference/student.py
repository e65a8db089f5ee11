"""Student's and the normal distribution, without ``scipy.stats``, which takes a second to import.

Functions of freedom (degrees of freedom) and values work element by element, as numpy's do. Where a
value is no number, or there are no degrees of freedom, the result is NaN.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from quantarena.leaderboard.inference.sign_flips import LEVEL


def reach(freedom: float, level: float = LEVEL) -> float:
    """Half the length of a two-sided interval, in standard errors: Student's quantile."""
    return float(special.stdtrit(freedom, (1 + level) / 2))


def widening(freedom: float, level: float = LEVEL) -> float:
    """How much longer an interval of Student's is than a normal one of the same level."""
    return reach(freedom, level) / float(special.ndtri((1 + level) / 2))


def two_sided(values: ArrayLike, freedom: ArrayLike) -> NDArray[np.float64]:
    """The p-value of the absolute statistics ``values`` under Student's distribution."""
    found: NDArray[np.float64] = 2 * special.stdtr(freedom, -np.abs(values))
    return found
