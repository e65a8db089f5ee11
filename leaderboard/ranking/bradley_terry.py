"""A check of a ranking by another method: a Bradley-Terry fit of all votes at once."""

import numpy as np

from quantarena.leaderboard.ranking.votes import Floats


def bradley_terry(wins: Floats, *, prior: float = 0.1, rounds: int = 500) -> Floats:
    """Log strength of each contestant, (N,), with mean zero, by minorise-maximise.

    The result does not depend on the order of the votes, unlike a K-Sort rating.

    Args:
        wins: (N, N), how often the row's contestant beat the column's; a tie counts half for each.
        prior: number of virtual wins, and of virtual losses, that each contestant gets, shared
            evenly among its opponents. They keep the strengths of undefeated or unconnected
            contestants finite.
        rounds: largest number of iterations.
    """
    count = len(wins)
    if count < 2:
        return np.zeros(count)
    share = prior / (count - 1)
    smooth = wins + share * (1.0 - np.eye(count))
    games = smooth + smooth.T
    won = smooth.sum(axis=1)
    strength = np.ones(count)
    for _ in range(rounds):
        rates = games / (strength[:, None] + strength[None, :])
        fresh = won / rates.sum(axis=1)
        fresh /= np.exp(np.log(fresh).mean())
        done = bool(np.max(np.abs(np.log(fresh / strength))) < 1e-9)
        strength = fresh
        if done:
            break
    return np.asarray(np.log(strength))
