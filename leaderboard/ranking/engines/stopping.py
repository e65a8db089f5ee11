"""When a pair needs no more votes: it is separated, or tied within a stated difference."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantarena.leaderboard.inference.sign_flips import LEVEL
from quantarena.leaderboard.ranking.engines.posterior import Posterior


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """What is decided of each pair of N contestants; all decisions hold at once.

    Attributes:
        separated: (N, N) True where the row's contestant is better.
        tied: (N, N) True where the two differ by at most the stated difference; symmetric.
        open_pairs: number of pairs of which neither is decided.
    """

    separated: NDArray[np.bool_]
    tied: NDArray[np.bool_]
    open_pairs: int

    @property
    def done(self) -> bool:
        """Whether voting may stop."""
        return self.open_pairs == 0


def stop_rule(posterior: Posterior, delta: float, *, level: float = LEVEL) -> Stop:
    """Decide each pair: separated, tied within ``delta``, or open.

    A pair that is both, separated by less than ``delta``, counts as separated.

    Args:
        posterior: what is believed now.
        delta: difference that does not matter, in the scale of the posterior's means.
        level: confidence that all decisions hold at once.

    Raises:
        ValueError: delta is not positive.
    """
    if not delta > 0:
        raise ValueError(f"delta must be positive, not {delta}")
    count = len(posterior.contestants)
    separated = posterior.claims(level)
    tied = np.zeros((count, count), dtype=bool)
    if count > 1 and len(posterior.weights):
        share = (1.0 - level) / (count * (count - 1) / 2)
        tied = (posterior.within(delta) >= 1.0 - share) & ~(separated | separated.T)
        np.fill_diagonal(tied, False)
    decided = separated | separated.T | tied
    return Stop(separated, tied, int(np.triu(~decided, 1).sum()))
