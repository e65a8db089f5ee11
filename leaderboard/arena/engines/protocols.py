"""What the arena asks of a ranking engine.

Two protocols. A ``Matchmaker`` turns what is known so far into the next set for a prompt, and
``Standings`` turn votes into the lines of a board. ``named`` lists the engines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quantarena.leaderboard.ranking.votes import Floats, Vote


@dataclass(frozen=True, slots=True)
class Past:
    """What is known when the next set of a board is chosen.

    Attributes:
        board: key of the board and the task; an engine may keep its state by it.
        votes: the board's votes so far, in the order in which they came. It only grows, unless a
            vote was taken back.
        open: contestants of sets that other voters hold now and have not answered.
    """

    board: str
    votes: Sequence[Vote]
    open: Sequence[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class BoardLine:
    """Where one contestant stands.

    Attributes:
        contestant: ``method@bits``.
        place: first place of its tie group.
        mu: score; the mean of a board is the same at all times.
        low: lower end of its 95 % interval.
        high: upper end.
        best_rank: 1 plus the number of contestants that are surely better.
        worst_rank: number of contestants minus those that are surely worse.
        votes: votes that it took part in.
    """

    contestant: str
    place: int
    mu: float
    low: float
    high: float
    best_rank: int
    worst_rank: int
    votes: int


class Matchmaker(Protocol):
    """Chooses the next set."""

    name: str

    def next_set(
        self, past: Past, contestants: Sequence[str], *, size: int, seed: int
    ) -> tuple[str, ...]:
        """The contestants to compare next on a prompt, at most ``size`` and at least one.

        It depends on its arguments only: the same ones give the same set.

        Args:
            past: what is known.
            contestants: those with an image of the prompt.
            size: K.
            seed: decides between equals.
        """
        ...


class Standings(Protocol):
    """Turns votes into a board."""

    name: str

    def board(self, votes: Sequence[Vote], contestants: Sequence[str]) -> tuple[BoardLine, ...]:
        """One line for each contestant, the best first; the order of votes does not matter."""
        ...


@dataclass(frozen=True, slots=True)
class Engine:
    """A matchmaker and standings that go together."""

    matchmaker: Matchmaker
    standings: Standings


def meetings(sets: Sequence[tuple[str, ...]], contestants: Sequence[str]) -> Floats:
    """How often each pair is together in one of the sets, (N, N), with zeros on the diagonal."""
    place = {name: number for number, name in enumerate(contestants)}
    pairs = [(n, place[name]) for n, one in enumerate(sets) for name in one if name in place]
    there = np.zeros((len(sets), len(contestants)))
    if pairs:
        there[tuple(np.array(pairs).T)] = 1.0
    met = there.T @ there
    np.fill_diagonal(met, 0.0)
    return met
