"""How far the votes of a program may move what people said: the correction of K-Sort Eval.

Each vote of a program is weighed by how well the program agrees with people on the contestants of
that vote. With Spearman's rho of the two orders and ``weight = 1 / (1 + exp(-5 rho))``,

    posterior = weight * updated + (1 - weight) * before

as a mixture of two Gaussians (arXiv 2602.09411). The mixture is replaced by the Gaussian with its
exact mean and variance; the published code leaves the distance of the two means out of the
variance. An indifferent program (rho 0) still has half a voice: that is the published rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from quantarena.leaderboard.arena.events import VoteEvent
from quantarena.leaderboard.ranking.ksort import DEFAULT_RULES, Rating, Rules, rate, update
from quantarena.leaderboard.ranking.votes import Floats, Vote, tabulate

STEEPNESS = 5.0
"""Slope of the weight in rho, as published."""


@dataclass(frozen=True, slots=True)
class Corrected:
    """A contestant's rating after the votes of programs.

    Attributes:
        contestant: ``method@bits``.
        mu: mean of its skill.
        sigma: standard deviation of its skill, by K-Sort's own count, which is too small to be
            an interval.
        before: mean by the votes of people alone; None where they have not seen it.
    """

    contestant: str
    mu: float
    sigma: float
    before: float | None


def weight_of(rho: float) -> float:
    """Weight of a program's vote, in (0, 1)."""
    return float(1.0 / (1.0 + np.exp(-STEEPNESS * rho)))


def mixed(
    mu: Floats, var: Floats, new_mu: Floats, new_var: Floats, weight: float
) -> tuple[Floats, Floats]:
    """Mean and variance of a mixture of two Gaussians, element by element.

    Args:
        mu: means before, (K,).
        var: variances before.
        new_mu: means after the update.
        new_var: variances after the update.
        weight: of the second.
    """
    mean = weight * new_mu + (1.0 - weight) * mu
    between = weight * (1.0 - weight) * (new_mu - mu) ** 2
    return mean, weight * new_var + (1.0 - weight) * var + between


def agreement(vote: Vote, people: Mapping[str, Rating]) -> float | None:
    """Spearman's rho of a vote and of people's ratings, on the contestants that people have seen.

    None where there are fewer than two of them, or one of the orders is all ties.
    """
    place = {name: tier for tier, names in enumerate(vote.tiers) for name in names}
    known = [name for name in vote.contestants if name in people]
    ours = [-place[name] for name in known]
    theirs = [people[name].mu for name in known]
    if len(set(ours)) < 2 or len(set(theirs)) < 2:
        return None
    return float(stats.spearmanr(ours, theirs).statistic)


def corrected(events: Sequence[VoteEvent], rules: Rules = DEFAULT_RULES) -> tuple[Corrected, ...]:
    """Ratings of one board: people's votes first, then those of programs, each with its weight.

    A vote on contestants that people have not seen gets the mean weight of that judge's other
    votes, and half where it has none.

    Args:
        events: standing votes of one board and task; sets that do not rank are left out.
        rules: constants of K-Sort.
    """
    ranked = [event for event in events if event.ranked]
    human = [event.vote() for event in ranked if event.judge_kind == "human"]
    seen = sorted({name for vote in human for name in vote.contestants})
    people = rate(human, seen, rules)
    programs = [event for event in ranked if event.judge_kind != "human"]
    names = sorted({shown.contestant for event in ranked for shown in event.shown})
    rhos = [agreement(event.vote(), people) for event in programs]
    usual: dict[str, float] = {}
    for judge in {event.judge for event in programs}:
        known = [
            weight_of(rho)
            for event, rho in zip(programs, rhos, strict=True)
            if event.judge == judge and rho is not None
        ]
        usual[judge] = float(np.mean(known)) if known else weight_of(0.0)
    start = Rating(rules.mu, rules.sigma)
    mu = np.array([people.get(name, start).mu for name in names])
    var = np.array([people.get(name, start).sigma ** 2 for name in names])
    for event, rho in zip(programs, rhos, strict=True):
        ballot = tabulate([event.vote()], names)
        seats = ballot.members[0]
        new_mu, new_var = update(mu[seats], var[seats], ballot.outcome[0], rules)
        weight = usual[event.judge] if rho is None else weight_of(rho)
        mu[seats], var[seats] = mixed(mu[seats], var[seats], new_mu, new_var, weight)
    return tuple(
        Corrected(
            names[n],
            float(mu[n]),
            float(np.sqrt(var[n])),
            people[names[n]].mu if names[n] in people else None,
        )
        for n in np.argsort(-mu, kind="stable")
    )
