"""Uncertainty of a ranking: a bootstrap over prompts, and the differences it can support."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from quantarena.leaderboard.inference.sign_flips import FEWEST, LEVEL
from quantarena.leaderboard.inference.student import widening
from quantarena.leaderboard.ranking.ksort import DEFAULT_RULES, Rules, replay
from quantarena.leaderboard.ranking.votes import Ballots, Floats, Ints


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """Estimated scores and their resamples.

    Attributes:
        mu: (N,) mean over shuffles of the vote order.
        sigma: (N,) K-Sort's own standard deviation. It is too small to be an interval, since
            it takes all votes as independent.
        samples: (B, N) scores for B resamples of the prompts.
        comparable: (N, N) True where a chain of votes joins the two contestants.
        units: number of prompts behind the scores.
    """

    mu: Floats
    sigma: Floats
    samples: Floats
    comparable: NDArray[np.bool_]
    units: int

    @property
    def low(self) -> Floats:
        """Lower ends of the 95 % intervals, (N,)."""
        return np.asarray(np.quantile(self.samples, (1 - LEVEL) / 2, axis=0))

    @property
    def high(self) -> Floats:
        """Upper ends of the 95 % intervals, (N,)."""
        return np.asarray(np.quantile(self.samples, (1 + LEVEL) / 2, axis=0))

    def better(self, one: int, other: int) -> float:
        """Share of resamples in which ``one`` is above ``other``."""
        lead = self.samples[:, one] - self.samples[:, other]
        return float((lead > 0).mean() + 0.5 * (lead == 0).mean())


def estimate(
    ballots: Ballots,
    *,
    seed: int = 0,
    shuffles: int = 24,
    resamples: int = 300,
    rules: Rules = DEFAULT_RULES,
) -> Spread:
    """Scores of K-Sort averaged over vote orders, with resamples of whole prompts.

    Args:
        ballots: the votes.
        seed: of the shuffles and the resamples.
        shuffles: number of vote orders that the scores are averaged over.
        resamples: number of bootstrap resamples.
        rules: constants of the rating.
    """
    rng = np.random.default_rng(seed)
    votes, units = len(ballots.members), len(ballots.units)
    orders = [rng.permutation(votes) for _ in range(shuffles)]
    of_unit = [np.flatnonzero(ballots.unit == unit) for unit in range(units)]
    for _ in range(resamples):
        drawn = rng.integers(units, size=units) if units else np.empty(0, dtype=np.int64)
        picked = [of_unit[unit] for unit in drawn]
        orders.append(rng.permutation(np.concatenate(picked)) if picked else np.empty(0, np.int64))
    mu, var = replay(ballots, _padded(orders), rules)
    # Only differences are identified: unequal sigmas let the common level wander with the vote
    # order, which would blow up every interval. The mean of all contestants is pinned instead.
    mu += rules.mu - mu.mean(axis=1, keepdims=True) if mu.shape[1] else 0.0
    links = ballots.wins + ballots.wins.T > 0
    _, part = connected_components(links, directed=False) if len(links) else (0, np.empty(0))
    return Spread(
        mu=mu[:shuffles].mean(axis=0),
        sigma=np.sqrt(var[:shuffles].mean(axis=0)),
        samples=_widened(mu[shuffles:], units),
        comparable=part[:, None] == part[None, :],
        units=units,
    )


def separations(spread: Spread) -> NDArray[np.bool_]:
    """Pairs that the votes separate, (N, N): True where the row's contestant is better.

    All claims hold together with 95 % confidence. Each difference is divided by its bootstrap
    deviation and must exceed the 95 % quantile of the largest such ratio over all pairs of a
    resample. This is Tukey's range test with a bootstrap in place of the normal distribution: a
    false claim does not become likelier with many contestants.
    """
    count = len(spread.mu)
    if count < 2 or spread.units < FEWEST:
        return np.zeros((count, count), dtype=bool)
    one, other = np.triu_indices(count, 1)
    gaps = spread.samples[:, one] - spread.samples[:, other]
    scale = np.maximum(gaps.std(axis=0), 1e-9)
    drift = np.abs(gaps - gaps.mean(axis=0)) / scale
    bar = float(np.quantile(drift.max(axis=1), LEVEL))
    lead = (spread.mu[one] - spread.mu[other]) / scale
    above = np.zeros((count, count), dtype=bool)
    above[one, other], above[other, one] = lead > bar, lead < -bar
    return above & spread.comparable


def tie_groups(mu: Floats, above: NDArray[np.bool_]) -> Ints:
    """Tie group of each contestant, (N,), 1 for the best.

    A group holds neighbours in score that are not separated from the best of their group.
    """
    group = np.zeros(len(mu), dtype=np.int64)
    current, head = 0, -1
    for number in np.argsort(-mu, kind="stable"):
        if head < 0 or above[head, number]:
            current, head = current + 1, int(number)
        group[number] = current
    return group


def _widened(samples: Floats, units: int) -> Floats:
    """Resamples spread out by what a bootstrap of n units misses where n is small.

    Its variance divides by n instead of n - 1, and its tails are those of the normal
    distribution instead of Student's t.
    """
    if units < 2 or not len(samples):
        return samples
    tails = widening(units - 1)
    centre = samples.mean(axis=0)
    return np.asarray(centre + (samples - centre) * tails * np.sqrt(units / (units - 1)))


def _padded(orders: list[Ints]) -> Ints:
    longest = max((len(order) for order in orders), default=0)
    table = np.full((len(orders), longest), -1, dtype=np.int64)
    for row, order in enumerate(orders):
        table[row, : len(order)] = order
    return table
