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
from scipy import stats

from quantarena.leaderboard.inference.sign_flips import Floats

FEWEST_RUNS = 5
"""Fewest runs whose spread is estimated; with fewer, a claim is about the runs at hand."""


def equal_means_over_runs(gaps: Floats) -> Floats:
    """Tests whether each of M pairs is equal on average over prompts and runs, (M,) p-values.

    Args:
        gaps: (M, n, S) difference of each pair on each unit in each run, NaN where one of them has
            no score. A pair is judged on the units that both have in all runs.
    """
    whole = [gap[np.isfinite(gap).all(axis=1)] for gap in gaps]
    runs = gaps.shape[2]
    known = [gap.mean(axis=0).var(ddof=1) for gap in whole if len(gap) >= 2]
    least = float(np.mean(known)) / runs if known else 0.0
    contestants = (1 + math.sqrt(1 + 8 * len(gaps))) / 2  # M = N (N - 1) / 2
    freedom = (contestants - 1) * (runs - 1)
    return holm(np.array([_p_value(gap, least, freedom) for gap in whole]))


def holm(p: Floats) -> Floats:
    """Step-down p-values of M tests, (M,), which together are wrong as seldom as one alone."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    left = len(p) - np.arange(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * left), 1.0)
    return adjusted


def _p_value(gap: Floats, least: float, freedom_of_runs: float) -> float:
    """Of one pair's (n, S) differences; 1 where there are too few of them.

    Args:
        gap: the differences.
        least: least variance of the mean by runs.
        freedom_of_runs: degrees of freedom of this variance.
    """
    n, runs = gap.shape
    if n < 2 or runs < 2:
        return 1.0
    m = gap.mean()
    if not gap.any():
        return 1.0
    a, b = gap.mean(axis=1) - m, gap.mean(axis=0) - m
    rest = float(np.square(gap - m - a[:, None] - b).sum()) / ((n - 1) * (runs - 1) * n * runs)
    prompts, seeds = float(a.var(ddof=1)) / n, max(float(b.var(ddof=1)) / runs, least)
    variance = max(prompts + seeds - rest, prompts, seeds)
    if variance == 0:
        return 0.0
    freedom = (prompts + seeds) ** 2 / (prompts**2 / (n - 1) + seeds**2 / freedom_of_runs)
    return float(2 * stats.t.sf(abs(m) / math.sqrt(variance), freedom))
