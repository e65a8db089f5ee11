"""What tests of all pairs say of N contestants: who is surely before whom, and the ranks left."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantarena.leaderboard.inference.sign_flips import LEVEL, Floats, Ints


def pairs(count: int) -> tuple[Ints, Ints]:
    """Numbers of the first and the second contestant of all M = N (N - 1) / 2 pairs, (M,) each."""
    one, other = np.triu_indices(count, 1)
    return one.astype(np.int64), other.astype(np.int64)


def least_ranks(values: Floats) -> Floats:
    """(N, M) ranks from 1 in each column of (N, M) values; equal ones share the least rank."""
    order = np.argsort(values, axis=0, kind="stable")
    ordered = np.take_along_axis(values, order, axis=0)
    places = np.ones_like(values)
    places[1:] = np.where(ordered[1:] != ordered[:-1], np.arange(2, len(values) + 1)[:, None], 1)
    ranks = np.empty_like(values)
    np.put_along_axis(ranks, order, np.maximum.accumulate(places, axis=0), axis=0)
    return ranks


@dataclass(frozen=True, slots=True, eq=False)
class SureOrder:
    """The separated pairs.

    Attributes:
        before: (N, N) True where the row's contestant is surely before the column's.
    """

    before: NDArray[np.bool_]

    @classmethod
    def of(cls, count: int, gaps: Floats, p: Floats) -> "SureOrder":
        """The order that M tests leave.

        Args:
            count: N.
            gaps: (M,) first minus second of each pair of ``pairs``; the smaller is before.
            p: (M,) p-value of "equal", adjusted for all pairs.
        """
        one, other = pairs(count)
        sure = p <= 1 - LEVEL
        before = np.zeros((count, count), dtype=bool)
        before[one, other], before[other, one] = sure & (gaps < 0), sure & (gaps > 0)
        return cls(before)

    def best(self, number: int) -> int:
        """1 plus the number of contestants that are surely before this one."""
        return 1 + int(self.before[:, number].sum())

    def worst(self, number: int) -> int:
        """The number of contestants minus those that are surely behind this one."""
        return len(self.before) - int(self.before[number].sum())

    @property
    def ties(self) -> NDArray[np.bool_]:
        """(N, N) True for two different contestants that are not separated."""
        return np.asarray(~(self.before | self.before.T | np.eye(len(self.before), dtype=bool)))
