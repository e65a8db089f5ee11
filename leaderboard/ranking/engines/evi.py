"""The choice of the next contestants to compare, by the expected value of their comparison."""

import numpy as np
from scipy.special import ndtr, owens_t

from quantarena.leaderboard.ranking.engines.posterior import Posterior
from quantarena.leaderboard.ranking.votes import Floats

SMALLEST, LARGEST = 2, 8
"""Sizes of a match that are offered. Of twelve images people lose track, and intervals of the
joint Gaussian cover less than they say."""
CHECK_EVERY = 20
"""Every so many matches one is a check, spread over the whole ranking."""


def pair_gains(posterior: Posterior) -> Floats:
    """Expected fall in the chance that a pair is misordered, if it is compared once, (N, N).

    The difference of two skills is N(m, s^2), and its misordered chance is that its sign is not
    that of m. After one more look at both, each with noise beta, the mean is N(m, v) with
    ``v = s^4 / (s^2 + 2 beta^2)``, and it then has the wrong sign with a bivariate normal
    probability, which two values of Owen's T function give.

    Raises:
        ValueError: the engine gives no uncertainty.
    """
    count = len(posterior.contestants)
    one, other = np.triu_indices(count, 1)
    mean, cov = posterior.mean, posterior.cov
    own = np.diag(cov)
    var = np.maximum(own[one] + own[other] - 2.0 * cov[one, other], 1e-12)
    ratio = np.clip(np.sqrt(var / (var + 2.0 * posterior.noise**2)), 1e-6, 1.0 - 1e-9)
    lead = np.abs(mean[one] - mean[other]) / np.sqrt(var)
    slope = np.sqrt(1.0 - ratio**2) / ratio
    after = 2.0 * (owens_t(lead, slope) + owens_t(lead / ratio, 0.0))
    gain = np.maximum(ndtr(-lead) - after, 0.0)
    if posterior.known is not None:
        sure = np.tensordot(posterior.weights, posterior.known, 1)
        gain = gain * (1.0 - np.clip(sure + sure.T, 0.0, 1.0)[one, other])
    table = np.zeros((count, count))
    table[one, other] = table[other, one] = gain
    return table


def next_match(
    posterior: Posterior,
    size: int = 4,
    *,
    turn: int = 0,
    seed: int | None = None,
    busy: Floats | None = None,
) -> tuple[str, ...]:
    """The contestants whose comparison is expected to lower the misordered pairs the most.

    The set grows greedily from the pair with the largest gain; the gain of a set is the sum over
    its pairs. Such sets hold near neighbours, whose order is a close call for honest and
    random voters alike. So every twentieth match is a check instead: the most uncertain contestant
    of each part of the ranking, which tells noise from random votes.

    Args:
        posterior: what is believed now.
        size: K; all contestants where there are fewer.
        turn: number of the match, from 0. It decides when a check is due.
        seed: decides between equals; by default the turn does.
        busy: (N, N) number of judges who compare a pair right now; its gain is divided by one
            more, so that judges at the same time get different sets.

    Raises:
        ValueError: a size that is not offered, or an engine that gives no uncertainty.
    """
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"a match has {SMALLEST} to {LARGEST} contestants, not {size}")
    names = posterior.contestants
    if len(names) <= size:
        return names
    rng = np.random.default_rng(turn if seed is None else seed)
    if turn % CHECK_EVERY == CHECK_EVERY - 1:
        order = np.argsort(-posterior.score, kind="stable")
        var = np.diag(posterior.cov)
        parts = np.array_split(order, size)
        return tuple(names[n] for n in sorted(int(part[var[part].argmax()]) for part in parts))
    gain = pair_gains(posterior)
    if busy is not None:
        gain = gain / (1.0 + busy)
    # Equal pairs, as all are before the first vote, are taken at random and not in order of name.
    jitter = rng.random(gain.shape)
    gain = gain * (1.0 + 1e-6 * (jitter + jitter.T)) + 1e-15 * (jitter + jitter.T)
    np.fill_diagonal(gain, -np.inf)
    chosen = [int(number) for number in np.unravel_index(gain.argmax(), gain.shape)]
    while len(chosen) < size:
        total = gain[chosen].sum(axis=0)
        total[chosen] = -np.inf
        chosen.append(int(total.argmax()))
    return tuple(names[number] for number in sorted(chosen))
