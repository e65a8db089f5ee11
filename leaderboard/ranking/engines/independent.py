"""Engines that rate each contestant by itself: K-Sort, as published or repaired, TrueSkill, Elo.

Their means and variances know no covariances. They are here to be compared with.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantarena.leaderboard.ranking.engines.conditions import outcome
from quantarena.leaderboard.ranking.engines.posterior import Posterior
from quantarena.leaderboard.ranking.ksort import DEFAULT_RULES, Rules, truncation, update
from quantarena.leaderboard.ranking.votes import Floats, Vote

INSTALL = "pip install 'quantarena[ranking]'"
PRINTED_FLOOR = 1e-4
"""K-Sort's printed variance factor is clamped here; the paper does not say what it does below 0."""
ELO_START, ELO_STEP, ELO_SCALE = 1500.0, 32.0, 400.0

Update = Callable[[Floats, Floats, Vote, Mapping[str, int]], tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True, eq=False)
class Ratings:
    """Ratings between two votes.

    Attributes:
        contestants: names of the N contestants.
        index: their positions.
        mu: (N,) means.
        var: (N,) variances; empty where the engine has none.
        update: what a vote does to them.
        eta: the score is ``mu - eta * sigma``.
    """

    contestants: tuple[str, ...]
    index: Mapping[str, int]
    mu: Floats
    var: Floats
    update: Update
    eta: float = 0.0

    def absorb(self, vote: Vote) -> "Ratings":
        """The ratings after one more vote."""
        mu, var = self.update(self.mu, self.var, vote, self.index)
        return replace(self, mu=mu, var=var)

    def read(self) -> Posterior:
        """The ratings as one Gaussian without covariances."""
        count = len(self.contestants)
        if not len(self.var) and count:
            none = np.zeros((0, count))
            return Posterior(self.contestants, self.mu, np.zeros(0), none, none[:, :, None])
        return Posterior(
            contestants=self.contestants,
            score=self.mu - self.eta * np.sqrt(self.var),
            weights=np.ones(1),
            means=self.mu[None],
            covs=np.diag(self.var)[None],
            noise=DEFAULT_RULES.beta,
        )


@dataclass(frozen=True, slots=True)
class KSort:
    """K-Sort Arena's rating (arXiv 2408.14468).

    Attributes:
        published: whether it is taken as printed: variance factor ``1 - sum``, clamped, and ranks
            by ``mu - 3 sigma``. Repaired it multiplies the factors and ranks by ``mu``.
        rules: the constants.
    """

    published: bool = False
    rules: Rules = DEFAULT_RULES

    def start(self, contestants: Sequence[str]) -> Ratings:
        """The engine before any vote."""
        change = self._printed if self.published else self._repaired
        eta = self.rules.eta if self.published else 0.0
        return _fresh(contestants, change, self.rules.mu, self.rules.sigma**2, eta)

    def _repaired(
        self, mu: Floats, var: Floats, vote: Vote, index: Mapping[str, int]
    ) -> tuple[Floats, Floats]:
        seats, beat = outcome(vote, index)
        mu, var = mu.copy(), var.copy()
        mu[seats], var[seats] = update(mu[seats], var[seats], beat, self.rules)
        return mu, var

    def _printed(
        self, mu: Floats, var: Floats, vote: Vote, index: Mapping[str, int]
    ) -> tuple[Floats, Floats]:
        seats, beat = outcome(vote, index)
        own, old = mu[seats], var[seats]
        c2 = 2.0 * self.rules.beta**2 + old[:, None] + old[None, :]
        v, w = truncation((own[:, None] - own[None, :]) / np.sqrt(c2))
        flow = beat * v / np.sqrt(c2)
        shrink = beat * w / c2
        mu, var = mu.copy(), var.copy()
        mu[seats] = own + old * (flow - flow.T).sum(axis=1)
        factor = 1.0 - old * (shrink + shrink.T).sum(axis=1)
        var[seats] = old * np.maximum(factor, PRINTED_FLOOR)
        return mu, var


@dataclass(frozen=True, slots=True)
class Elo:
    """Elo, all pairs of a vote at the ratings from before it. It gives no uncertainty.

    Attributes:
        step: the K-factor.
    """

    step: float = ELO_STEP

    def start(self, contestants: Sequence[str]) -> Ratings:
        """The engine before any vote."""
        return replace(_fresh(contestants, self._update, ELO_START, 0.0, 0.0), var=np.zeros(0))

    def _update(
        self, mu: Floats, var: Floats, vote: Vote, index: Mapping[str, int]
    ) -> tuple[Floats, Floats]:
        seats, beat = outcome(vote, index)
        own = mu[seats]
        compared = beat + beat.T
        expected = compared / (1.0 + 10.0 ** ((own[None, :] - own[:, None]) / ELO_SCALE))
        mu = mu.copy()
        mu[seats] = own + self.step * (beat - expected).sum(axis=1)
        return mu, var


@dataclass(frozen=True, slots=True)
class TrueSkill:
    """TrueSkill's free-for-all, by the package ``trueskill``, without drift.

    It knows no unordered tiers and takes them as ties.

    Attributes:
        draws: chance of a draw that is assumed in votes with ties.
    """

    draws: float = 0.1

    def start(self, contestants: Sequence[str]) -> Ratings:
        """The engine before any vote.

        Raises:
            ImportError: the package is not installed; the message says how to install it.
        """
        package = required("trueskill")
        strict = package.TrueSkill(tau=0.0, draw_probability=0.0)
        tied = package.TrueSkill(tau=0.0, draw_probability=self.draws)

        def change(
            mu: Floats, var: Floats, vote: Vote, index: Mapping[str, int]
        ) -> tuple[Floats, Floats]:
            seats, _ = outcome(vote, index)
            if len(seats) < 2:
                return mu, var
            place = [
                next(n for n, tier in enumerate(vote.tiers) if name in tier)
                for name in sorted(vote.contestants, key=lambda name: index[name])
            ]
            setting = strict if len(vote.tiers) == len(seats) else tied
            groups = [
                (setting.create_rating(mu[seat], float(np.sqrt(var[seat]))),) for seat in seats
            ]
            rated = setting.rate(groups, ranks=place)
            mu, var = mu.copy(), var.copy()
            mu[seats] = [group[0].mu for group in rated]
            var[seats] = [group[0].sigma ** 2 for group in rated]
            return mu, var

        return _fresh(contestants, change, strict.mu, strict.sigma**2, 0.0)


def required(name: str) -> Any:
    """An optional package.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed: {INSTALL}") from error


def _fresh(
    contestants: Sequence[str], change: Update, mu: float, var: float, eta: float
) -> Ratings:
    names, count = tuple(contestants), len(contestants)
    index = {name: number for number, name in enumerate(names)}
    return Ratings(names, index, np.full(count, mu), np.full(count, var), change, eta)
