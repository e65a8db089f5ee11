"""What an engine believes after the votes: a mixture of Gaussians over all skills, and claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from quantarena.leaderboard.inference.sign_flips import LEVEL
from quantarena.leaderboard.ranking.votes import Floats, Vote


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """A belief about the skills of N contestants; only their differences mean anything.

    Attributes:
        contestants: their N names.
        score: (N,) what the engine ranks by, higher is better.
        weights: (G,) weights of the Gaussians, with sum 1; empty for an engine that gives no
            uncertainty, such as Elo.
        means: (G, N) their means, in the engine's own scale.
        covs: (G, N, N) their covariances.
        known: (G, N, N) True where a Gaussian stands for a belief in which the row's contestant
            is certainly above the column's; None where nothing is certain.
        prior_var: variance of the difference of two skills before any vote, where claims shall
            hold however often one looks; None for engines without such a guarantee.
        noise: standard deviation of the noise of a look, in the same scale.
        random_share: estimated share of random votes of each judge.
        resamples: (B, N) scores of resampled votes, for engines that have them.
    """

    contestants: tuple[str, ...]
    score: Floats
    weights: Floats
    means: Floats
    covs: Floats
    known: NDArray[np.bool_] | None = None
    prior_var: float | None = None
    noise: float = 0.0
    random_share: Mapping[str, float] = field(default_factory=dict)
    resamples: Floats | None = None

    @property
    def mean(self) -> Floats:
        """Means of the skills, (N,)."""
        return np.asarray(self.weights @ self.means) if len(self.weights) else self.score

    @property
    def cov(self) -> Floats:
        """Covariance of the skills, (N, N).

        Raises:
            ValueError: the engine gives no uncertainty.
        """
        self._require()
        off = self.means - self.mean
        inside = np.tensordot(self.weights, self.covs, 1)
        return np.asarray(inside + (self.weights[:, None] * off).T @ off)

    @property
    def spread(self) -> Floats:
        """Standard deviations of the differences, (N, N), 0 on the diagonal."""
        return np.asarray(_spread(self.cov[None])[0])

    def better(self) -> Floats:
        """Probability that the row's contestant is above the column's, (N, N), 1/2 on the diagonal.

        Raises:
            ValueError: the engine gives no uncertainty.
        """
        self._require()
        above = ndtr(self._leads() / np.maximum(_spread(self.covs), 1e-12))
        if self.known is not None:
            above = np.where(self.known, 1.0, above)
            above = np.where(np.swapaxes(self.known, 1, 2), 0.0, above)
        chance = np.tensordot(self.weights, above, 1)
        np.fill_diagonal(chance, 0.5)
        return np.asarray(chance)

    def within(self, delta: float) -> Floats:
        """Probability that two skills differ by at most ``delta``, (N, N), 1 on the diagonal."""
        self._require()
        lead, sd = self._leads(), np.maximum(_spread(self.covs), 1e-12)
        inside = ndtr((delta - lead) / sd) - ndtr((-delta - lead) / sd)
        chance = np.tensordot(self.weights, inside, 1)
        np.fill_diagonal(chance, 1.0)
        return np.asarray(chance)

    def evidence(self) -> Floats:
        """Bayes factor of "these two differ" against "they are equal", (N, N).

        The ratio of the density of a zero difference before and after the votes (Dickey 1971). If
        the two are equal it is a martingale with mean 1, so by Ville's inequality it ever exceeds
        1 / a with a chance of at most a, whenever one stops.
        """
        self._require()
        prior = float(self.prior_var or 0.0)
        sd = np.maximum(_spread(self.covs), 1e-12)
        density = np.exp(-0.5 * (self._leads() / sd) ** 2) / sd
        if self.known is not None:
            density = np.where(self.known | np.swapaxes(self.known, 1, 2), 0.0, density)
        after = np.tensordot(self.weights, density, 1)
        factor = 1.0 / np.maximum(after * np.sqrt(prior), 1e-300)
        np.fill_diagonal(factor, 0.0)
        return np.asarray(factor)

    def claims(self, level: float = LEVEL) -> NDArray[np.bool_]:
        """Pairs that the votes separate, (N, N): True where the row's contestant is better.

        The allowed error is shared by all pairs (Bonferroni). Where the engine has a proper prior
        the Bayes factor must also exceed the inverse of that share: then the claims hold together
        with this confidence though one looks after every vote.
        """
        count = len(self.contestants)
        if count < 2 or not len(self.weights):
            return np.zeros((count, count), dtype=bool)
        share = (1.0 - level) / (count * (count - 1) / 2)
        # A Gaussian with one mean for all gives each order of a pair half of its weight.
        level_weight = self.weights[np.ptp(self.means, axis=1) == 0.0].sum()
        if 0.5 * level_weight > share:
            return np.zeros((count, count), dtype=bool)
        sure = self.better() >= 1.0 - share
        if self.prior_var:
            sure &= self.evidence() >= 1.0 / share
        return np.asarray(sure)

    def _leads(self) -> Floats:
        return np.asarray(self.means[:, :, None] - self.means[:, None, :])

    def _require(self) -> None:
        if not len(self.weights):
            raise ValueError("this engine gives scores without uncertainty")


def _spread(covs: Floats) -> Floats:
    own = np.einsum("gnn->gn", covs)
    return np.asarray(np.sqrt(np.maximum(own[:, :, None] + own[:, None, :] - 2.0 * covs, 0.0)))


class Running(Protocol):
    """An engine between two votes. It is never changed: each vote makes a new one."""

    def absorb(self, vote: Vote) -> "Running":
        """The engine after one more vote."""
        ...

    def read(self) -> Posterior:
        """What it believes now."""
        ...


class Engine(Protocol):
    """Turns a log of votes into a belief; a pure function of the log."""

    def start(self, contestants: Sequence[str]) -> Running:
        """The engine before any vote."""
        ...


def posterior(engine: Engine, votes: Sequence[Vote], contestants: Sequence[str]) -> Posterior:
    """What an engine believes after a log of votes, read in the order of the log.

    Args:
        engine: the engine.
        votes: the log.
        contestants: names of all contestants, with or without votes.

    Raises:
        ValueError: a vote has a contestant that is not listed, or a name is listed twice.
    """
    if len(set(contestants)) != len(contestants):
        raise ValueError("a contestant is listed twice")
    running = engine.start(contestants)
    for vote in votes:
        running = running.absorb(vote)
    return running.read()
