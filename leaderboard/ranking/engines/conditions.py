"""What one vote says: conditions on differences of looks, and its chance with a random voter."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from quantarena.leaderboard.ranking.votes import Floats, Ints, Vote


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """A vote as M conditions on differences between the looks at its K contestants.

    Attributes:
        members: (K,) positions of the contestants, tier by tier, in rising order inside a tier.
        differences: (M, K) the matrix A of the differences; each row has one +1 and one -1.
        tied: (M,) True where the vote says that a difference is small, False where it is positive.
        slots: number of places between neighbours in the order, K - 1.
        ties: number of these places at which the vote says "equal".
        log_orders: log of the share of all K! strict orders that agree with the tiers.
    """

    members: Ints
    differences: Floats
    tied: NDArray[np.bool_]
    slots: int
    ties: int
    log_orders: float

    def log_random(self, tie_rate: float) -> float:
        """Log of the chance of this vote with a voter who orders at random.

        Args:
            tie_rate: share of neighbours that are called equal; such a voter is as fond of ties
                as all others. 0 where there are no ties.
        """
        if not tie_rate:
            return self.log_orders
        strict = self.slots - self.ties
        return float(self.log_orders + self.ties * np.log(tie_rate) + strict * np.log1p(-tie_rate))


def outcome(vote: Vote, index: Mapping[str, int]) -> tuple[Ints, Floats]:
    """A vote as pairs, for engines that know nothing else.

    Args:
        vote: the vote.
        index: position of each contestant.

    Returns:
        (K,) positions in rising order, and (K, K) 1 where the row's contestant beat the column's,
        0.5 both ways for a tie, 0 for pairs that the vote left unordered.

    Raises:
        ValueError: the vote has a contestant without a position.
    """
    _require_known(vote, index)
    seats = sorted((index[name], place) for place, tier in enumerate(vote.tiers) for name in tier)
    place = np.array([tier for _, tier in seats])
    equal = 0.0 if vote.partial else 0.5
    beat = (place[:, None] < place[None, :]) + equal * (place[:, None] == place[None, :])
    np.fill_diagonal(beat, 0.0)
    return np.array([number for number, _ in seats], dtype=np.int64), beat


def _require_known(vote: Vote, index: Mapping[str, int]) -> None:
    unknown = sorted(set(vote.contestants) - set(index))
    if unknown:
        raise ValueError(f"a vote has {', '.join(unknown)}, which is not among the contestants")


def conditions(vote: Vote, index: Mapping[str, int]) -> Conditions | None:
    """The conditions of a vote; None where it says nothing, as a vote on one contestant.

    Each member of a tier exceeds each member of the next one. Members of one tier are pairwise
    equal, or unordered in a partial vote. All pairs are used, so that names play no part.

    Args:
        vote: the vote.
        index: position of each contestant.

    Raises:
        ValueError: the vote has a contestant without a position.
    """
    _require_known(vote, index)
    tiers = [sorted(index[name] for name in tier) for tier in vote.tiers]
    members = [number for tier in tiers for number in tier]
    seat = {number: place for place, number in enumerate(members)}
    strict = [(a, b) for up, down in itertools.pairwise(tiers) for a in up for b in down]
    equal = (
        []
        if vote.partial
        else [(a, b) for tier in tiers for n, a in enumerate(tier) for b in tier[n + 1 :]]
    )
    pairs = strict + equal
    if not pairs:
        return None
    rows = np.arange(len(pairs))
    matrix = np.zeros((len(pairs), len(members)))
    matrix[rows, [seat[one] for one, _ in pairs]] = 1.0
    matrix[rows, [seat[other] for _, other in pairs]] = -1.0
    sizes = np.array([len(tier) for tier in tiers])
    return Conditions(
        members=np.array(members, dtype=np.int64),
        differences=matrix,
        tied=np.arange(len(pairs)) >= len(strict),
        slots=len(members) - 1,
        ties=0 if vote.partial else int((sizes - 1).sum()),
        log_orders=float(gammaln(sizes + 1.0).sum() - gammaln(len(members) + 1.0)),
    )
