"""The belief that votes follow one strict order without error, as long as no two contradict.

Then a vote that repeats what is known adds nothing. A Gaussian filter would count it again and
again, and become far too sure of distances. So the known relations are kept as a graph, of which
only those not implied by others (the cover relations) cut the Gaussian.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantarena.leaderboard.ranking.engines.ep import log_integral, truncated
from quantarena.leaderboard.ranking.votes import Floats, Ints

SWEEPS = 60
TOLERANCE = 1e-4
DAMPING = 0.6


@dataclass(frozen=True, slots=True, eq=False)
class ExactOrder:
    """Skills N(0, 1) cut to all orders that agree with the votes, as a Gaussian.

    Attributes:
        above: (N, N) True where the row's contestant is certainly better.
        pairs: (P, 2) the cover relations, the better one first.
        precision: (P,) precisions of their factors.
        natural: (P,) precision-weighted means of their factors.
        mean: (N,) mean of the skills.
        cov: (N, N) their covariance.
        log_mass: log of the probability of all votes so far.
    """

    above: NDArray[np.bool_]
    pairs: Ints
    precision: Floats
    natural: Floats
    mean: Floats
    cov: Floats
    log_mass: float


def no_order(count: int) -> ExactOrder:
    """The belief before any vote on ``count`` contestants."""
    none = np.zeros(0)
    return ExactOrder(
        above=np.zeros((count, count), dtype=bool),
        pairs=np.zeros((0, 2), dtype=np.int64),
        precision=none,
        natural=none,
        mean=np.zeros(count),
        cov=np.eye(count),
        log_mass=0.0,
    )


def add_relations(before: ExactOrder, pairs: Ints) -> ExactOrder | None:
    """The belief after more relations; None where they contradict those before.

    Args:
        before: the belief.
        pairs: (M, 2) contestants, the better one first.
    """
    above = before.above.copy()
    for one, other in pairs:
        if above[other, one]:
            return None
        if not above[one, other]:
            upper, lower = above[:, one].copy(), above[other].copy()
            upper[one] = lower[other] = True
            above |= upper[:, None] & lower[None, :]
    if np.array_equal(above, before.above):
        return before
    reach = above.astype(np.float64)
    cover = np.argwhere(above & (reach @ reach < 0.5))
    old = {tuple(pair): place for place, pair in enumerate(before.pairs.tolist())}
    place = np.array([old.get(tuple(pair), -1) for pair in cover.tolist()])
    precision = np.where(place >= 0, np.append(before.precision, 0.0)[place], 0.0)
    natural = np.where(place >= 0, np.append(before.natural, 0.0)[place], 0.0)
    return _settled(above, cover, precision, natural)


def _settled(
    above: NDArray[np.bool_], pairs: Ints, precision: Floats, natural: Floats
) -> ExactOrder:
    one, other = pairs.T
    mean, cov, chol = _joined(len(above), pairs, precision, natural)
    for _ in range(SWEEPS):
        cavity_mean, cavity_var = _cavity(mean, cov, pairs, precision, natural)
        _, tilt_mean, tilt_var = truncated(cavity_mean, cavity_var)
        fresh = np.maximum(1.0 / tilt_var - 1.0 / cavity_var, 0.0)
        shift = tilt_mean / tilt_var - cavity_mean / cavity_var
        precision = precision + DAMPING * (fresh - precision)
        natural = natural + DAMPING * (shift - natural)
        before = mean
        mean, cov, chol = _joined(len(above), pairs, precision, natural)
        if np.max(np.abs(mean - before)) < TOLERANCE:
            break
    cavity_mean, cavity_var = _cavity(mean, cov, pairs, precision, natural)
    log_part, _, _ = truncated(cavity_mean, cavity_var)
    log_part = log_part - log_integral(cavity_mean, cavity_var, precision, natural)
    joint = 0.5 * natural @ (mean[one] - mean[other]) - np.log(np.diag(chol)).sum()
    return ExactOrder(above, pairs, precision, natural, mean, cov, float(log_part.sum() + joint))


def _joined(
    count: int, pairs: Ints, precision: Floats, natural: Floats
) -> tuple[Floats, Floats, Floats]:
    """Mean, covariance and Cholesky factor of the precision, of prior and all factors."""
    one, other = pairs.T
    whole = np.eye(count)
    np.add.at(whole, (one, one), precision)
    np.add.at(whole, (other, other), precision)
    whole[one, other] -= precision
    whole[other, one] -= precision
    force = np.bincount(one, natural, count) - np.bincount(other, natural, count)
    chol = np.asarray(np.linalg.cholesky(whole))
    cov = np.asarray(np.linalg.inv(whole))
    return cov @ force, 0.5 * (cov + cov.T), chol


def _cavity(
    mean: Floats, cov: Floats, pairs: Ints, precision: Floats, natural: Floats
) -> tuple[Floats, Floats]:
    """Mean and variance of each difference without its own factor."""
    one, other = pairs.T
    var = np.maximum(cov[one, one] + cov[other, other] - 2.0 * cov[one, other], 1e-12)
    share = np.maximum(1.0 - precision * var, 1e-9)
    return (mean[one] - mean[other] - natural * var) / share, var / share
