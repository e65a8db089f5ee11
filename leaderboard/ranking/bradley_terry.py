"""A second opinion on a ranking: a batch Bradley-Terry fit that knows no vote order."""

import numpy as np

from quantarena.leaderboard.ranking.votes import Floats


def bradley_terry(wins: Floats, *, prior: float = 0.1, rounds: int = 500) -> Floats:
    """Log strengths with mean zero, by minorise-maximise.

    Args:
        wins: (N, N) how often row beat column, a tie counting half for each.
        prior: virtual draws with every other contestant, shared out; keeps an undefeated
            contestant and a disconnected graph finite.
        rounds: most iterations.
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
        meet = games / (strength[:, None] + strength[None, :])
        fresh = won / meet.sum(axis=1)
        fresh /= np.exp(np.log(fresh).mean())
        done = bool(np.max(np.abs(np.log(fresh / strength))) < 1e-9)
        strength = fresh
        if done:
            break
    return np.asarray(np.log(strength))
