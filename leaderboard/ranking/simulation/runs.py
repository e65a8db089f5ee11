"""One simulated run: an engine picks matches, a voter votes, and we compare with the truth."""

from dataclasses import dataclass

import numpy as np

from quantarena.leaderboard.ranking.engines.posterior import Engine, Posterior
from quantarena.leaderboard.ranking.engines.registry import MATCHERS, Matcher
from quantarena.leaderboard.ranking.simulation.voters import Regime, cast_vote, skills
from quantarena.leaderboard.ranking.votes import Floats, Ints

Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated.

    Attributes:
        models: number N of contestants.
        size: K, contestants of a vote.
        votes: votes of a run.
        regime: how people vote.
        every: number of votes between two measurements of the order.
        looks: number of votes between two looks at intervals and claims, a multiple of ``every``;
            0 for one look at the end.
    """

    models: int
    size: int
    votes: int
    regime: Regime
    every: int = 1
    looks: int = 25


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What was measured in one run.

    Attributes:
        at: (C,) numbers of votes at which the order was measured.
        tau: (C,) Kendall's tau-a between scores and true skills.
        looked: (L,) numbers of votes at which intervals and claims were looked at.
        covered: (L,) share of pairs whose nominal 95 % interval of the difference holds the true
            difference; empty for engines without uncertainty.
        right: (L,) number of claims that are true.
        wrong: (L,) number of claims that are false. Where all votes are random every claim is.
    """

    at: Ints
    tau: Floats
    looked: Ints
    covered: Floats
    right: Ints
    wrong: Ints

    def first(self, level: float) -> int | None:
        """Number of votes at which tau first reached a level; None where it never did."""
        reached = np.flatnonzero(self.tau >= level)
        return int(self.at[reached[0]]) if len(reached) else None

    def exact(self) -> int | None:
        """Number of votes from which on the order was exact to the end; None where it was not."""
        missed = np.flatnonzero(self.tau < 1.0)
        if not len(missed):
            return int(self.at[0])
        return int(self.at[missed[-1] + 1]) if missed[-1] + 1 < len(self.at) else None


def simulate(engine: Engine, matcher: Matcher, setup: Setup, seed: int) -> Trace:
    """One run; the same for the same arguments.

    Args:
        engine: what rates the contestants.
        matcher: what chooses each match.
        setup: what is simulated.
        seed: of the skills and of the votes. Runs of two engines with one seed have the same
            skills.
    """
    rng = np.random.default_rng(seed)
    names = tuple(f"m{number:03d}" for number in range(setup.models))
    index = {name: number for number, name in enumerate(names)}
    truth = skills(setup.models, setup.regime, rng)
    met = np.zeros((setup.models, setup.models))
    running = engine.start(names)
    belief = running.read()
    blind = matcher is MATCHERS["random"]
    at, tau, looks = [], [], []
    for turn in range(setup.votes):
        shown = matcher(belief, met, setup.size, turn + 100_000 * seed)
        seats = np.array([index[name] for name in shown])
        vote = cast_vote(shown, truth[seats], setup.regime, rng, f"u{turn}")
        running = running.absorb(vote)
        met[np.ix_(seats, seats)] += 1.0 - np.eye(len(seats))
        last = turn + 1 == setup.votes
        measured = (turn + 1) % setup.every == 0 or last
        if measured or not blind:
            belief = running.read()
        if measured:
            at.append(turn + 1)
            tau.append(kendall(belief.score, truth))
        if last or (setup.looks and (turn + 1) % setup.looks == 0):
            looks.append((turn + 1, *_looked(belief, truth, setup.regime)))
    looked, covered, right, wrong = zip(*looks, strict=True) if looks else ((), (), (), ())
    return Trace(
        at=np.array(at, dtype=np.int64),
        tau=np.array(tau),
        looked=np.array(looked, dtype=np.int64),
        covered=np.array([share for share in covered if share is not None]),
        right=np.array(right, dtype=np.int64),
        wrong=np.array(wrong, dtype=np.int64),
    )


def kendall(score: Floats, truth: Floats) -> float:
    """Kendall's tau-a, in -1 to 1; a pair with equal scores counts as neither."""
    one, other = np.triu_indices(len(score), 1)
    if not len(one):
        return 1.0
    agree = np.sign(score[one] - score[other]) * np.sign(truth[one] - truth[other])
    return float(agree.mean())


def coverage(belief: Posterior, truth: Floats) -> float | None:
    """Share of pairs whose 95 % interval holds the true difference; None without uncertainty.

    The truth has standard deviation 1, as the joint engine's prior has. Engines with another scale
    are given the best one: the truth is stretched by the slope of their means against it.
    """
    if not len(belief.weights):
        return None
    one, other = np.triu_indices(len(truth), 1)
    mean, spread = belief.mean, belief.spread
    slope = 1.0 if belief.prior_var == 2.0 else _slope(mean, truth)
    gap = (mean[one] - mean[other]) - slope * (truth[one] - truth[other])
    return float(np.mean(np.abs(gap) <= Z_95 * spread[one, other]))


def _slope(mean: Floats, truth: Floats) -> float:
    centred = truth - truth.mean()
    return float(centred @ mean / max(float(centred @ centred), 1e-12))


def _looked(belief: Posterior, truth: Floats, regime: Regime) -> tuple[float | None, int, int]:
    claims = belief.claims()
    true = (truth[:, None] > truth[None, :]) & (regime.random < 1.0)
    return coverage(belief, truth), int((claims & true).sum()), int((claims & ~true).sum())
