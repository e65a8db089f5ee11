"""The default engine: one Gaussian over all skills, with its full covariance.

Skills are N(0, 1) before any vote. A look adds noise N(0, beta^2), and a vote orders its looks;
with a chance s, the judge's share of random votes, it is a uniformly random order instead.
Expectation propagation takes in a whole vote at once, with ties and unordered tiers. Noise and
share are not known: each pair on a grid is a hypothesis with its own Gaussian, and evidence weighs
them. Two more hypotheses bound the grid: that votes follow one order without error, and that all
are random.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantarena.leaderboard.ranking.engines.conditions import Conditions, conditions
from quantarena.leaderboard.ranking.engines.ep import cut
from quantarena.leaderboard.ranking.engines.exact_order import (
    ExactOrder,
    add_relations,
    no_order,
)
from quantarena.leaderboard.ranking.engines.posterior import Posterior
from quantarena.leaderboard.ranking.votes import Floats, Vote

NOISES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.85, 1.1, 1.5, 2.0)
SHARES = (0.0, 0.1, 0.25, 0.5, 0.8, 0.97)
ALIKE = 0.8
"""Chance, before any vote, that a judge's share of random votes is that of the hypothesis; the
rest is spread over all shares."""
LEAST = 1e-9
"""A hypothesis whose weight falls below this is dropped for good."""
MARGINS = (0.07, 0.15, 0.3, 0.55, 1.0)
"""Differences of looks up to which they are called equal: each is a hypothesis from the first tie
on. They are fixed numbers, since a margin fitted to the skills would leave the scale of both
free."""
MOST_TIES = 0.95
"""Largest share of ties that a random voter is supposed to call."""


@dataclass(frozen=True, slots=True)
class Joint:
    """The joint Gaussian.

    Attributes:
        noises: the grid of beta, in standard deviations of the skills.
        shares: the grid of the share of random votes, each below 1.
        bounds: whether the two hypotheses that bound the grid take part.
    """

    noises: tuple[float, ...] = NOISES
    shares: tuple[float, ...] = SHARES
    bounds: bool = True

    def start(self, contestants: Sequence[str]) -> "Filter":
        """The engine before any vote."""
        names, count = tuple(contestants), len(contestants)
        noise, share = (grid.ravel() for grid in np.meshgrid(self.noises, self.shares))
        whole = len(noise) + 2 * self.bounds
        level = -np.log(whole)
        return Filter(
            contestants=names,
            index={name: number for number, name in enumerate(names)},
            shares=np.array(self.shares),
            noise=noise,
            share=share,
            margin=np.zeros(len(noise)),
            log_weight=np.full(len(noise), level),
            mean=np.zeros((len(noise), count)),
            cov=np.repeat(np.eye(count)[None], len(noise), axis=0),
            judges={},
            log_null=level if self.bounds else -np.inf,
            order=no_order(count) if self.bounds else None,
            log_order=level if self.bounds else -np.inf,
            slots=0,
            ties=0,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """The joint Gaussian between two votes: G hypotheses about noise and share.

    Attributes:
        contestants: names of the N contestants.
        index: their positions.
        shares: (S,) the grid of shares.
        noise: (G,) beta of each hypothesis.
        share: (G,) share of random votes that it expects of a new judge.
        margin: (G,) its largest difference of looks that are called equal; 0 before any tie.
        log_weight: (G,) log of its prior times the probability of all votes.
        mean: (G, N) means of the skills.
        cov: (G, N, N) their covariances.
        judges: for each judge the (G, S) probabilities of its share.
        log_null: the same as ``log_weight`` for the hypothesis that all votes are random.
        order: the hypothesis of votes without error; None once two contradict.
        log_order: log of its prior.
        slots: number of neighbours in all votes.
        ties: number of neighbours that were called equal.
    """

    contestants: tuple[str, ...]
    index: Mapping[str, int]
    shares: Floats
    noise: Floats
    share: Floats
    margin: Floats
    log_weight: Floats
    mean: Floats
    cov: Floats
    judges: Mapping[str, Floats]
    log_null: float
    order: ExactOrder | None
    log_order: float
    slots: int
    ties: int

    def absorb(self, vote: Vote) -> "Filter":
        """The filter after one more vote.

        Raises:
            ValueError: the vote has an unknown contestant.
        """
        said = conditions(vote, self.index)
        if said is None:
            return self
        ready = self._with_margins() if said.ties and not self.ties else self
        return ready._absorbed(said, vote.judge)._pruned()

    def _with_margins(self) -> "Filter":
        """Each hypothesis once for each margin of ties."""
        times = len(MARGINS)
        return replace(
            self,
            noise=np.tile(self.noise, times),
            share=np.tile(self.share, times),
            margin=np.repeat(MARGINS, len(self.noise)),
            log_weight=np.tile(self.log_weight - np.log(times), times),
            mean=np.tile(self.mean, (times, 1)),
            cov=np.tile(self.cov, (times, 1, 1)),
            judges={name: np.tile(table, (times, 1)) for name, table in self.judges.items()},
        )

    def _absorbed(self, said: Conditions, judge: str) -> "Filter":
        matrix = said.differences
        reach = self.cov[:, :, said.members] @ matrix.T
        mean = self.mean[:, said.members] @ matrix.T
        looks = (self.noise**2)[:, None, None] * (matrix @ matrix.T)
        cov = matrix @ reach[:, said.members] + looks
        slots, ties = self.slots + said.slots, self.ties + said.ties
        found = cut(mean, cov, self.margin, said.tied)
        log_random = said.log_random(min(ties / slots, MOST_TIES))
        honest = self._honest(judge)
        belief = honest * (1.0 - self.shares)
        blind = honest * self.shares
        log_honest = np.log(belief.sum(axis=1)) + found.log_mass
        log_blind = np.log(np.maximum(blind.sum(axis=1), 1e-300)) + log_random
        log_any = np.logaddexp(log_honest, log_blind)
        trust = np.exp(log_honest - log_any)
        # Bayes' rule over the judge's grid: each share's chance of this vote, relative to the mean.
        fresh = belief * np.exp(found.log_mass - log_any)[:, None]
        fresh = fresh + blind * np.exp(log_random - log_any)[:, None]
        # Moments of the mixture of an honest vote, which cuts, and a random one, which does not.
        pull = (reach @ found.push[:, :, None])[:, :, 0]
        outer = found.push[:, :, None] * found.push[:, None, :]
        shrink = trust[:, None, None] * found.shrink
        shrink = shrink - (trust * (1.0 - trust))[:, None, None] * outer
        return replace(
            self,
            log_weight=self.log_weight + log_any,
            mean=self.mean + trust[:, None] * pull,
            cov=self.cov - (reach @ shrink) @ np.swapaxes(reach, 1, 2),
            judges={**self.judges, judge: fresh / fresh.sum(axis=1, keepdims=True)},
            log_null=self.log_null + log_random,
            order=self._ordered(said),
            slots=slots,
            ties=ties,
        )

    def _honest(self, judge: str) -> Floats:
        """Probabilities of a judge's share of random votes, (G, S)."""
        known = self.judges.get(judge)
        if known is not None:
            return known
        own = self.share[:, None] == self.shares[None, :]
        return np.asarray(ALIKE * own + (1.0 - ALIKE) / len(self.shares))

    def _ordered(self, said: Conditions) -> ExactOrder | None:
        if self.order is None or said.tied.any():
            return None
        better = said.members[np.argmax(said.differences, axis=1)]
        worse = said.members[np.argmin(said.differences, axis=1)]
        return add_relations(self.order, np.stack([better, worse], axis=1))

    def _pruned(self) -> "Filter":
        keep = self.log_weight >= self.log_all() + np.log(LEAST)
        if keep.all() or not keep.any():
            return self
        return replace(
            self,
            noise=self.noise[keep],
            share=self.share[keep],
            margin=self.margin[keep],
            log_weight=self.log_weight[keep],
            mean=self.mean[keep],
            cov=self.cov[keep],
            judges={name: table[keep] for name, table in self.judges.items()},
        )

    def log_all(self) -> float:
        """Log of the probability of all votes under the whole prior."""
        order = -np.inf if self.order is None else self.log_order + self.order.log_mass
        return float(np.logaddexp.reduce([*self.log_weight, self.log_null, order]))

    def read(self) -> Posterior:
        """The mixture over all hypotheses."""
        count, total = len(self.contestants), self.log_all()
        weights = [np.exp(self.log_weight - total)]
        means, covs = [self.mean], [self.cov]
        known = [np.zeros((len(self.noise), count, count), dtype=bool)]
        if np.isfinite(self.log_null):
            weights.append(np.exp([self.log_null - total]))
            means.append(np.zeros((1, count)))
            covs.append(np.eye(count)[None])
            known.append(np.zeros((1, count, count), dtype=bool))
        if self.order is not None:
            weights.append(np.exp([self.log_order + self.order.log_mass - total]))
            means.append(self.order.mean[None])
            covs.append(self.order.cov[None])
            known.append(self.order.above[None])
        weight = np.concatenate(weights)
        weight /= weight.sum()
        mean = np.concatenate(means)
        inside = weight[: len(self.noise)]
        return Posterior(
            contestants=self.contestants,
            score=weight @ mean,
            weights=weight,
            means=mean,
            covs=np.concatenate(covs),
            known=np.concatenate(known),
            prior_var=2.0,
            noise=float(np.sqrt(inside @ self.noise**2 / max(inside.sum(), 1e-300)))
            if inside.sum() > 1e-6
            else float(self.noise.min()),
            random_share={
                name: float(self._share_of(table, inside, weight))
                for name, table in self.judges.items()
            },
        )

    def _share_of(self, table: Floats, inside: Floats, weight: Floats) -> float:
        null = weight[len(self.noise)] if np.isfinite(self.log_null) else 0.0
        return float(inside @ (table @ self.shares) + null)
