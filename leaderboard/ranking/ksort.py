"""K-Sort rating: a Gaussian skill for each contestant, updated by K-wise votes.

One ordered pair, i beat q, with skills N(mu, s^2) and seeing noise beta:

    c^2 = beta_i^2 + beta_q^2 + s_i^2 + s_q^2        x = (mu_i - mu_q) / c
    V   = pdf(x) / cdf(x)                            W = V (V + x)
    mu_i += s_i^2 / c V      mu_q -= s_q^2 / c V     s^2 *= 1 - s^2 / c^2 W

A K-wise vote applies all its pairs to the ratings from before the vote. docs/ranking.md says where
this departs from the printed formulas, and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import erfcx

from quantarena.leaderboard.ranking.votes import Ballots, Floats, Ints, Vote, tabulate


@dataclass(frozen=True, slots=True)
class Rules:
    """Constants of the rating.

    Attributes:
        mu: mean of the skill of a new contestant.
        sigma: standard deviation of the skill of a new contestant.
        beta: standard deviation of the noise that one look at a contestant adds.
        eta: weight of sigma in the conservative score ``mu - eta * sigma``.
        floor: smallest variance, as a share of a new contestant's. With it a rating can always
            move again; the variance stays positive without it.
    """

    mu: float = 25.0
    sigma: float = 25.0 / 3.0
    beta: float = 25.0 / 6.0
    eta: float = 3.0
    floor: float = 1e-4


DEFAULT_RULES = Rules()


@dataclass(frozen=True, slots=True)
class Rating:
    """Estimate of one contestant's skill: the mean and the standard deviation of a Gaussian."""

    mu: float
    sigma: float

    def conservative(self, rules: Rules = DEFAULT_RULES) -> float:
        """``mu - eta * sigma``. It grows with the number of votes, so nothing is ranked by it."""
        return self.mu - rules.eta * self.sigma


def truncation(x: Floats) -> tuple[Floats, Floats]:
    """V and W of a win at normalised lead ``x``, stable for any ``x``.

    ``cdf(x) = exp(-x^2 / 2) erfcx(-x / sqrt 2) / 2``, so the exponential cancels from V.
    """
    v = np.sqrt(2.0 / np.pi) / erfcx(-x / np.sqrt(2.0))
    w = np.clip(v * (v + x), 0.0, 1.0)
    return v, w


def update(mu: Floats, var: Floats, outcome: Floats, rules: Rules) -> tuple[Floats, Floats]:
    """Ratings after one vote, for any number of independent votes at once.

    Args:
        mu: (..., K) means before the vote.
        var: (..., K) variances before the vote.
        outcome: (..., K, K) 1 where the row's contestant beat the column's, 0.5 both ways for a
            tie, 0 where the two were not compared.
        rules: the constants.

    Returns:
        (..., K) means and variances after the vote. A variance shrinks by the product of the
        factors of its pairs instead of the printed ``1 - sum``, which is negative for upsets.
    """
    c2 = 2.0 * rules.beta**2 + var[..., :, None] + var[..., None, :]
    c = np.sqrt(c2)
    v, w = truncation((mu[..., :, None] - mu[..., None, :]) / c)
    flow = outcome * v
    push = (flow - np.swapaxes(flow, -1, -2)) / c
    shrink = outcome * w
    shrink = (shrink + np.swapaxes(shrink, -1, -2)) / c2
    new_mu = mu + var * push.sum(axis=-1)
    new_var = var * (1.0 - var[..., :, None] * shrink).prod(axis=-1)
    return new_mu, np.maximum(new_var, rules.floor * rules.sigma**2)


def replay(ballots: Ballots, orders: Ints, rules: Rules = DEFAULT_RULES) -> tuple[Floats, Floats]:
    """Play many sequences of votes side by side.

    Args:
        ballots: the votes.
        orders: (R, T) numbers of votes: each row is a sequence of T votes, -1 is no vote.
        rules: the constants.

    Returns:
        (R, N) means and variances of the N contestants at the end of each sequence.
    """
    runs, count = len(orders), len(ballots.contestants)
    members = np.vstack([ballots.members, np.full_like(ballots.members[:1], count)])
    outcome = np.concatenate([ballots.outcome, np.zeros_like(ballots.outcome[:1])])
    if not len(ballots.members):
        return np.full((runs, count), rules.mu), np.full((runs, count), rules.sigma**2)
    mu = np.full((runs, count + 1), rules.mu)
    var = np.full((runs, count + 1), rules.sigma**2)
    lane = np.arange(runs)[:, None]
    for votes in orders.T:
        seats = members[votes]
        mu[lane, seats], var[lane, seats] = update(
            mu[lane, seats], var[lane, seats], outcome[votes], rules
        )
    return mu[:, :count], var[:, :count]


def rate(
    votes: Sequence[Vote], contestants: Sequence[str], rules: Rules = DEFAULT_RULES
) -> dict[str, Rating]:
    """Ratings after these votes, applied once in the given order.

    For ratings that change while votes come in, as ``matchmaking`` needs them.
    """
    mu = np.full(len(contestants), rules.mu)
    var = np.full(len(contestants), rules.sigma**2)
    for vote in votes:
        ballot = tabulate([vote], contestants)
        seats = ballot.members[0]
        mu[seats], var[seats] = update(mu[seats], var[seats], ballot.outcome[0], rules)
    return {
        name: Rating(float(mean), float(np.sqrt(variance)))
        for name, mean, variance in zip(contestants, mu, var, strict=True)
    }
