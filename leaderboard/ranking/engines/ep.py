"""Expectation propagation for a Gaussian cut by a ranking: P(look differences fit the ranking).

A vote says of M differences of looks ``d = A y`` that each exceeds a margin, or lies within it.
The Gaussian over ``d`` cut to that region has no closed form. EP replaces each condition by a
Gaussian factor ``exp(eta d - lambda d^2 / 2)`` with the right mass, mean and variance against all
other factors (Minka 2001; for polyhedra Cunningham, Hennig, Lacoste-Julien 2011).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr

from quantarena.leaderboard.ranking.votes import Floats

SWEEPS = 40
"""Most sweeps; a strict ranking of four needs about eight."""
TOLERANCE = 1e-6
"""Largest change of a mean, in its standard deviations, at which the sweeps end."""
_SQRT_2 = np.sqrt(2.0)
_LOG_PDF = -0.5 * np.log(2.0 * np.pi)
_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """The factors of one vote, for G Gaussians at once.

    Attributes:
        log_mass: (G,) log of the probability of the vote.
        push: (G, M) vector b with which the mean of anything of covariance H with d moves by H b.
        shrink: (G, M, M) matrix W with which its covariance changes by -H W H'.
    """

    log_mass: Floats
    push: Floats
    shrink: Floats


def cut(mean: Floats, cov: Floats, margin: Floats, tied: NDArray[np.bool_]) -> Cut:
    """Condition Gaussians on all differences exceeding a margin, or lying within it.

    All factors are updated at once, with damping, so the order of the conditions is no matter.

    Args:
        mean: (G, M) means of the differences.
        cov: (G, M, M) their covariances, which may be singular.
        margin: (G,) the margin, >= 0; a tie needs one > 0.
        tied: (M,) True where the difference lies within the margin, False where it exceeds it.
    """
    groups, size = mean.shape
    eye = np.eye(size)
    own = np.einsum("gmm->gm", cov)
    scale = np.sqrt(own)
    precision = np.zeros((groups, size))
    natural = np.zeros((groups, size))
    post_mean, post_var = mean, own
    damping = 1.0 if size == 1 else 0.7
    for _ in range(SWEEPS):
        share = np.maximum(1.0 - precision * post_var, 1e-9)
        cavity_var = post_var / share
        cavity_mean = (post_mean - natural * post_var) / share
        _, tilt_mean, tilt_var = _all_truncated(cavity_mean, cavity_var, margin[:, None], tied)
        fresh = np.maximum(1.0 / tilt_var - 1.0 / cavity_var, 0.0)
        fresh_natural = tilt_mean / tilt_var - cavity_mean / cavity_var
        precision = precision + damping * (fresh - precision)
        natural = natural + damping * (fresh_natural - natural)
        inverse = np.linalg.inv(eye + cov * precision[:, None, :])
        before = post_mean
        post = inverse @ cov
        post_mean = (inverse @ (mean + (cov @ natural[..., None])[..., 0])[..., None])[..., 0]
        post_var = np.maximum(np.einsum("gmm->gm", post), _TINY * own)
        if np.all(np.abs(post_mean - before) <= TOLERANCE * scale):
            break
    return _summary(mean, cov, precision, natural, (post_mean, post_var, inverse), margin, tied)


def _summary(
    mean: Floats,
    cov: Floats,
    precision: Floats,
    natural: Floats,
    post: tuple[Floats, Floats, Floats],
    margin: Floats,
    tied: NDArray[np.bool_],
) -> Cut:
    post_mean, post_var, inverse = post
    share = np.maximum(1.0 - precision * post_var, 1e-9)
    cavity_var = post_var / share
    cavity_mean = (post_mean - natural * post_var) / share
    log_factor, _, _ = _all_truncated(cavity_mean, cavity_var, margin[:, None], tied)
    log_factor = log_factor - log_integral(cavity_mean, cavity_var, precision, natural)
    gap = natural - precision * mean
    _, log_det = np.linalg.slogdet(np.eye(mean.shape[1]) + cov * precision[:, None, :])
    joint = np.sum(natural * mean - 0.5 * precision * mean**2, axis=1) - 0.5 * log_det
    joint += 0.5 * np.einsum("gm,gmn,gn->g", gap, inverse @ cov, gap)
    shrink = precision[:, :, None] * inverse
    # The inverse is (I + P Lambda)^-1; its transpose (I + Lambda P)^-1 acts on precisions.
    return Cut(
        np.minimum(log_factor.sum(axis=1) + joint, 0.0),
        np.einsum("gnm,gn->gm", inverse, gap),
        0.5 * (shrink + np.swapaxes(shrink, 1, 2)),
    )


def log_integral(mean: Floats, var: Floats, precision: Floats, natural: Floats) -> Floats:
    """Log of the integral of ``N(d; mean, var) exp(natural d - precision d^2 / 2)``."""
    spread = 1.0 + var * precision
    value = natural * mean - 0.5 * precision * mean**2 - 0.5 * np.log(spread)
    return np.asarray(value + 0.5 * (natural - precision * mean) ** 2 * var / spread)


def truncated(mean: Floats, var: Floats) -> tuple[Floats, Floats, Floats]:
    """Log mass, mean and variance of Gaussians cut to what is above zero; any shape."""
    sd = np.sqrt(var)
    x = mean / sd
    v = np.sqrt(2.0 / np.pi) / erfcx(-x / _SQRT_2)
    w = np.clip(v * (v + x), 0.0, 1.0 - 1e-9)
    return log_ndtr(x), mean + sd * v, var * (1.0 - w)


def _all_truncated(
    mean: Floats, var: Floats, margin: Floats, tied: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats]:
    """Log mass, mean and variance of Gaussians above a margin, or within it where tied."""
    log_mass, new_mean, new_var = truncated(mean - margin, var)
    new_mean = new_mean + margin
    if not tied.any():
        return log_mass, new_mean, new_var
    sd = np.sqrt(var)
    within = _within(mean[:, tied], sd[:, tied], np.broadcast_to(margin, mean.shape)[:, tied])
    for whole, part in zip((log_mass, new_mean, new_var), within, strict=True):
        whole[:, tied] = part
    return log_mass, new_mean, new_var


def _within(mean: Floats, sd: Floats, margin: Floats) -> tuple[Floats, Floats, Floats]:
    """Log mass, mean and variance of Gaussians cut to [-margin, margin], margin > 0."""
    # By symmetry the mean is made negative, where both tails keep their relative precision.
    sign = np.where(mean > 0, -1.0, 1.0)
    centre = sign * mean
    high, low = (margin - centre) / sd, (-margin - centre) / sd
    log_mass = log_ndtr(-low) + np.log1p(-np.exp(np.minimum(log_ndtr(-high) - log_ndtr(-low), 0.0)))
    log_mass = np.where(high - low < 1e-6, _LOG_PDF - 0.5 * low**2 + np.log(high - low), log_mass)
    at_low = np.exp(_LOG_PDF - 0.5 * low**2 - log_mass)
    at_high = np.exp(_LOG_PDF - 0.5 * high**2 - log_mass)
    shift = at_low - at_high
    share = 1.0 + low * at_low - high * at_high - shift**2
    narrow = (high - low) ** 2 / 12.0
    # A cut much narrower than the Gaussian is nearly uniform, and the difference above cancels.
    share = np.where(high - low < 1e-3, narrow, np.clip(share, 1e-9, 1.0))
    place = np.clip(centre + sd * shift, -margin, margin)
    return log_mass, sign * place, sd**2 * share
