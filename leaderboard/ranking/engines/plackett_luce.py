"""Plackett-Luce by the package ``choix``: a fit of all votes at once, with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse.csgraph import connected_components

from quantarena.leaderboard.ranking.engines.conditions import outcome
from quantarena.leaderboard.ranking.engines.independent import required
from quantarena.leaderboard.ranking.engines.posterior import Posterior
from quantarena.leaderboard.ranking.votes import Floats, Vote

UNKNOWN = 1e4
"""Variance of the level of each group of contestants that votes connect, in squared log-strength;
it cancels from differences inside the group."""


@dataclass(frozen=True, slots=True)
class PlackettLuce:
    """The fit. It knows no ties: equal and unordered places are put in a seeded random order.

    Attributes:
        resamples: number of bootstrap resamples of whole units (of votes where all are on one
            unit); 0 gives scores without uncertainty.
        alpha: regularisation of ``choix.ilsr_rankings``; keeps undefeated contestants finite.
        seed: of the resamples and of the order of ties.
    """

    resamples: int = 100
    alpha: float = 0.05
    seed: int = 0

    def start(self, contestants: Sequence[str]) -> "VoteLog":
        """The engine before any vote.

        Raises:
            ImportError: the package is not installed; the message says how to install it.
        """
        required("choix")
        index = {name: number for number, name in enumerate(contestants)}
        return VoteLog(self, tuple(contestants), index, (), ())


@dataclass(frozen=True, slots=True, eq=False)
class VoteLog:
    """The votes so far, as full orders. The fit is made when it is read."""

    engine: PlackettLuce
    contestants: tuple[str, ...]
    index: dict[str, int]
    orders: tuple[tuple[int, ...], ...]
    units: tuple[str, ...]

    def absorb(self, vote: Vote) -> "VoteLog":
        """The log with one more vote."""
        seats, beat = outcome(vote, self.index)
        if len(seats) < 2:
            return self
        chance = np.random.default_rng([self.engine.seed, len(self.orders)]).random(len(seats))
        place = np.lexsort((chance, (beat == 1.0).sum(axis=0)))
        order = tuple(int(number) for number in seats[place])
        return replace(self, orders=(*self.orders, order), units=(*self.units, vote.unit))

    def read(self) -> Posterior:
        """The fit, and its bootstrap as one Gaussian."""
        count = len(self.contestants)
        score = self._fit(self.orders)
        samples = self._resampled() if self.orders and count > 1 else np.zeros((0, count))
        if len(samples) < 2:
            none = np.zeros((0, count))
            return Posterior(self.contestants, score, np.zeros(0), none, none[:, :, None])
        return Posterior(
            contestants=self.contestants,
            score=score,
            weights=np.ones(1),
            means=score[None],
            covs=(np.cov(samples.T) + 1e-9 * np.eye(count) + UNKNOWN * self._connected())[None],
            noise=1.0,
            resamples=samples,
        )

    def _connected(self) -> Floats:
        """(N, N) 1 where a chain of votes joins the two: no fit knows how far apart others are."""
        links = np.zeros((len(self.contestants), len(self.contestants)))
        for order in self.orders:
            links[order[0], list(order)] = 1.0
        _, part = connected_components(links, directed=False)
        return np.asarray(part[:, None] == part[None, :], dtype=np.float64)

    def _resampled(self) -> Floats:
        rng = np.random.default_rng(self.engine.seed)
        units = list(dict.fromkeys(self.units))
        groups = [
            [o for o, u in zip(self.orders, self.units, strict=True) if u == x] for x in units
        ]
        if len(units) < 2:
            groups = [[order] for order in self.orders]
        drawn = rng.integers(len(groups), size=(self.engine.resamples, len(groups)))
        fits = [self._fit([order for n in row for order in groups[n]]) for row in drawn]
        return np.array(fits).reshape(len(fits), len(self.contestants))

    def _fit(self, orders: Sequence[tuple[int, ...]]) -> Floats:
        count = len(self.contestants)
        if count < 2 or not orders:
            return np.zeros(count)
        fit = required("choix").ilsr_rankings
        return np.asarray(fit(count, list(orders), alpha=self.engine.alpha, tol=1e-6))
