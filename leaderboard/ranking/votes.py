"""Votes: a judge's order of K images that were drawn from the same prompt and seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Vote:
    """An order of K contestants with ties, given by one judge on one unit. It is never edited.

    Attributes:
        unit: the prompt of the compared images, such as ``p0007``, or the image and its seed
            where there are no prompts, such as ``s0/i0007``. It is the unit of evidence, which a
            bootstrap resamples.
        contestants: names of the compared contestants, in the order shown.
        tiers: the same names in tiers, the best tier first; names in one tier are tied.
        judge: name of the judge, such as ``lpips/alex-v0.1``, or a person's id.
        partial: whether names in one tier were left unordered instead of being called equal, as
            where only the best of K is picked.
    """

    unit: str
    contestants: tuple[str, ...]
    tiers: tuple[tuple[str, ...], ...]
    judge: str = ""
    partial: bool = False

    def __post_init__(self) -> None:
        ranked = [name for tier in self.tiers for name in tier]
        if not all(self.tiers) or not ranked:
            raise ValueError("a vote needs at least one tier, and no tier may be empty")
        if len(set(ranked)) != len(ranked) or set(ranked) != set(self.contestants):
            raise ValueError("the tiers must hold every contestant exactly once")
        if len(set(self.contestants)) != len(self.contestants):
            raise ValueError("a contestant appears twice in one vote")


@dataclass(frozen=True, slots=True, eq=False)
class Ballots:
    """V votes as arrays. Votes on fewer than K contestants are padded.

    Attributes:
        contestants: names of the N contestants; the numbers below are positions in it.
        units: names of the units.
        members: (V, K) contestants of each vote; the number N is padding.
        outcome: (V, K, K) 1 where the row's contestant beat the column's, 0.5 both ways for a
            tie, 0 for padding, for pairs that a vote left unordered, and on the diagonal.
        unit: (V,) unit of each vote, as a position in ``units``.
    """

    contestants: tuple[str, ...]
    units: tuple[str, ...]
    members: Ints
    outcome: Floats
    unit: Ints

    @property
    def wins(self) -> Floats:
        """How often the row's contestant beat the column's, (N, N); a tie counts half for each."""
        count = len(self.contestants) + 1
        total = np.zeros((count, count))
        np.add.at(total, (self.members[:, :, None], self.members[:, None, :]), self.outcome)
        return total[:-1, :-1]


def tabulate(votes: Sequence[Vote], contestants: Sequence[str]) -> Ballots:
    """Votes as arrays. They are sorted first, so that their order never matters."""
    index = {name: number for number, name in enumerate(contestants)}
    ordered = sorted(votes, key=lambda vote: (vote.unit, sorted(vote.contestants), vote.tiers))
    units = tuple(dict.fromkeys(vote.unit for vote in ordered))
    position = {name: number for number, name in enumerate(units)}
    width = max((len(vote.contestants) for vote in ordered), default=1)
    members = np.full((len(ordered), width), len(contestants), dtype=np.int64)
    outcome = np.zeros((len(ordered), width, width))
    for row, vote in enumerate(ordered):
        seats = [(index[name], tier) for tier, names in enumerate(vote.tiers) for name in names]
        # Seats in contestant order: the order of display and of names in a tier is not evidence.
        seats.sort()
        tiers = np.array([tier for _, tier in seats])
        size = len(seats)
        members[row, :size] = [number for number, _ in seats]
        equal = 0.0 if vote.partial else 0.5
        beat = (tiers[:, None] < tiers[None, :]) + equal * (tiers[:, None] == tiers[None, :])
        np.fill_diagonal(beat, 0.0)
        outcome[row, :size, :size] = beat
    unit = np.array([position[vote.unit] for vote in ordered], dtype=np.int64)
    return Ballots(tuple(contestants), units, members, outcome, unit)
