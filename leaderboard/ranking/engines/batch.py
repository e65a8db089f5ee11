"""A belief that does not depend on the order of the log: the mean over several orders of it.

The joint Gaussian takes in one vote after the other and keeps only a Gaussian, so early votes are
approximated before later ones are known. While votes come in this cannot be helped. Afterwards, for
a board, the same votes are read in several orders, and the beliefs are mixed.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from quantarena.leaderboard.ranking.engines.posterior import Engine, Posterior, posterior
from quantarena.leaderboard.ranking.votes import Vote

ORDERS = 8
LEAST = 1e-7
"""Gaussians of a smaller weight are left out of the mixture."""


def batch_posterior(
    engine: Engine,
    votes: Sequence[Vote],
    contestants: Sequence[str],
    *,
    orders: int = ORDERS,
    seed: int = 0,
) -> Posterior:
    """What an engine believes after a set of votes, whatever their order.

    Args:
        engine: the engine.
        votes: the votes; they are sorted first.
        contestants: names of all contestants.
        orders: number of orders that are read; the time grows with it.
        seed: of the orders.

    Raises:
        ValueError: a vote has a contestant that is not listed, a name is listed twice, or there
            is no order to read.
    """
    if orders < 1:
        raise ValueError(f"at least one order must be read, not {orders}")
    sorted_votes = sorted(votes, key=_key)
    rng = np.random.default_rng(seed)
    read = []
    for _ in range(orders):
        order = rng.permutation(len(sorted_votes))
        read.append(posterior(engine, [sorted_votes[number] for number in order], contestants))
    return _mixed(read)


def _key(vote: Vote) -> tuple[object, ...]:
    tiers = tuple(tuple(sorted(tier)) for tier in vote.tiers)
    return (vote.unit, sorted(vote.contestants), tiers, vote.judge, vote.partial)


def _mixed(read: Sequence[Posterior]) -> Posterior:
    share = 1.0 / len(read)
    score = np.mean([one.score for one in read], axis=0)
    weights = share * np.concatenate([one.weights for one in read])
    keep = weights >= LEAST
    known = [one.known for one in read if one.known is not None]
    judges = sorted({judge for one in read for judge in one.random_share})
    resamples = [one.resamples for one in read if one.resamples is not None]
    return replace(
        read[0],
        score=score,
        weights=weights[keep] / max(float(weights[keep].sum()), LEAST),
        means=np.concatenate([one.means for one in read])[keep],
        covs=np.concatenate([one.covs for one in read])[keep],
        known=np.concatenate(known)[keep] if len(known) == len(read) else None,
        noise=float(np.sqrt(np.mean([one.noise**2 for one in read]))),
        random_share={
            judge: float(np.mean([one.random_share[judge] for one in read])) for judge in judges
        },
        resamples=np.concatenate(resamples) if resamples else None,
    )
