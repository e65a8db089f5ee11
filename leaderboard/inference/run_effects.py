"""Tests of all pairs where both prompts and runs are samples: claims that hold for other runs too.

A run is one seed: another calibration and other noise. What a method loses on a run it loses on all
prompts of that run, so images of one run are not independent, and many prompts do not make up for
few runs. The variance of a mean over n prompts and S runs is then

    V = V_prompts / n + V_runs / S - V_rest / (n S)

of the variance of prompts' means, of runs' means, and of what is left, which both of these hold
once. Four degrees of freedom of five runs say little about one pair: where its runs happen to agree
they would be taken as all alike. So a pair has at least the variance of runs that all pairs have on
average. The mean over the root of V is compared with Student's t at the degrees of freedom of the
two parts (Satterthwaite, 1946). Five runs have 32 sign patterns, which is too few for flips. Holm's
step-down then holds all claims of a family together.
"""

import math

import numpy as np

from quantarena.leaderboard.inference.sign_flips import Floats
from quantarena.leaderboard.inference.student import two_sided

FEWEST_RUNS = 5
"""Fewest runs whose spread is estimated; with fewer, a claim is about the runs at hand."""


def equal_means_over_runs(gaps: Floats) -> Floats:
    """Tests whether each of M pairs is equal on average over prompts and runs, (M,) p-values.

    Args:
        gaps: (M, n, S) difference of each pair on each unit in each run, NaN where one of them has
            no score. A pair is judged on the units that both have in all runs.
    """
    known = np.asarray(np.isfinite(gaps).all(axis=2))
    if known.all():  # pairs of equal shape are tested at once
        parts = [gaps]
    else:
        parts = [gap[here][None] for gap, here in zip(gaps, known, strict=True)]
    runs = gaps.shape[2]
    several = [part.mean(axis=1) for part in parts if len(part) and part.shape[1] >= 2]
    spread = [means.var(axis=1, ddof=1) for means in several]
    least = float(np.mean(np.concatenate(spread))) / runs if spread else 0.0
    contestants = (1 + math.sqrt(1 + 8 * len(gaps))) / 2  # M = N (N - 1) / 2
    freedom = (contestants - 1) * (runs - 1)
    return holm(np.concatenate([_p_values(part, least, freedom) for part in parts]))


def holm(p: Floats) -> Floats:
    """Step-down p-values of M tests, (M,), which together are wrong as seldom as one alone."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    left = len(p) - np.arange(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * left), 1.0)
    return adjusted


def _p_values(gaps: Floats, least: float, freedom_of_runs: float) -> Floats:
    """Of pairs with (M, n, S) differences, (M,); 1 where there are too few of them.

    Args:
        gaps: the differences.
        least: least variance of the mean by runs.
        freedom_of_runs: degrees of freedom of this variance.
    """
    _, n, runs = gaps.shape
    if n < 2 or runs < 2:
        return np.ones(len(gaps))
    m = gaps.mean(axis=(1, 2))
    a, b = gaps.mean(axis=2) - m[:, None], gaps.mean(axis=1) - m[:, None]
    left = gaps - m[:, None, None] - a[:, :, None] - b[:, None, :]
    rest = np.square(left).sum(axis=(1, 2)) / ((n - 1) * (runs - 1) * n * runs)
    prompts = a.var(axis=1, ddof=1) / n
    seeds = np.maximum(b.var(axis=1, ddof=1) / runs, least)
    variance = np.maximum.reduce([prompts + seeds - rest, prompts, seeds])
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = (prompts + seeds) ** 2 / (prompts**2 / (n - 1) + seeds**2 / freedom_of_runs)
        p = two_sided(m / np.sqrt(variance), freedom)
    p = np.where(variance == 0, 0.0, p)  # it differs, and always by as much
    return np.where(gaps.any(axis=(1, 2)), p, 1.0)
