"""Limits on a quantized model, and what a sample of images or of timed rounds says of each.

A check fails only where the sample shows that the limit is broken. With k checks each may err with
probability 0.05 / k, so a model that is exactly at its limits fails in at most 5 % of all runs.
No torch.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

from quantarena.bench.metrics.bootstrap import Array, Groups
from quantarena.bench.report.power import BEYOND_REASON

SPEEDUP = "speedup"
"""The metric of timed rounds; all others are of images."""
RISK = 0.05
"""Probability with which a model at its limits may fail."""
POWER = 0.8
"""Probability with which a sample of the recommended size decides."""


class Verdict(StrEnum):
    """What a sample says of a limit."""

    KEPT = "kept"
    BROKEN = "broken"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound on a metric.

    Attributes:
        name: name of the metric.
        bound: its value.
        most: whether the metric may be at most the bound; else at least.
    """

    name: str
    bound: float
    most: bool

    def __str__(self) -> str:
        return f"{self.name} {'<=' if self.most else '>='} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Check:
    """A limit and what was measured.

    Attributes:
        limit: the limit.
        value: mean over images, or median over rounds.
        low: lower end of the interval; None where the sample is too small for one.
        high: upper end; each end is wrong with the probability that the check may err with.
        n: number of images or rounds.
        unit: ``images`` or ``rounds``.
        verdict: KEPT where the whole interval is on the right side, BROKEN where it is on the
            wrong one.
        needed: number of images or rounds that would decide, of an OPEN check; None where it is
            above 100,000 or unknown.
    """

    limit: Limit
    value: float
    low: float | None
    high: float | None
    n: int
    unit: str
    verdict: Verdict
    needed: int | None = None


def mean_check(
    limit: Limit, values: Array, *, checks: int = 1, groups: Groups | None = None
) -> Check:
    """A limit on the mean of a metric over images, by Student's t.

    Args:
        limit: the limit.
        values: one for each image, (N,), finite.
        checks: number of checks that share the risk.
        groups: prompt of each image; images of one prompt count as one, their mean.
    """
    units = _units(values, groups)
    count, mean = len(units), float(units.mean())
    if count < 2:
        return Check(limit, mean, None, None, len(values), "images", Verdict.OPEN)
    risk, deviation = RISK / checks, float(units.std(ddof=1))
    reach = float(stats.t.ppf(1 - risk, count - 1)) * deviation / math.sqrt(count)
    low, high = mean - reach, mean + reach
    verdict = _verdict(limit, low, high)
    needed = None
    if verdict is Verdict.OPEN and mean != limit.bound:
        quantiles = float(stats.norm.ppf(1 - risk) + stats.norm.ppf(POWER))
        wanted = (quantiles * deviation / (mean - limit.bound)) ** 2 * len(values) / count
        needed = _reasonable(wanted, len(values))
    return Check(limit, mean, low, high, len(values), "images", verdict, needed)


def median_check(limit: Limit, values: Array, *, checks: int = 1) -> Check:
    """A limit on the median of a metric over timed rounds, by the sign test.

    The interval's ends are order statistics, so nothing is assumed of the distribution.

    Args:
        limit: the limit.
        values: one for each round, (N,), finite.
        checks: number of checks that share the risk.
    """
    risk, ordered, count = RISK / checks, np.sort(values), len(values)
    # the k-th smallest of n is above the median with probability P(binomial(n, 1/2) <= k - 1)
    below = stats.binom.cdf(np.arange(count), count, 0.5)
    k = int(np.searchsorted(below, risk, side="right"))
    median = float(np.median(ordered))
    if k == 0:
        return Check(limit, median, None, None, count, "rounds", Verdict.OPEN, None)
    low, high = float(ordered[k - 1]), float(ordered[count - k])
    verdict = _verdict(limit, low, high)
    needed = None
    share = float((ordered > limit.bound).mean())
    if verdict is Verdict.OPEN and share != 0.5:
        quantiles = float(stats.norm.ppf(1 - risk) + stats.norm.ppf(POWER))
        needed = _reasonable((quantiles / (2 * share - 1)) ** 2, count)
    return Check(limit, median, low, high, count, "rounds", verdict, needed)


def passes(checks: tuple[Check, ...], *, strict: bool = False) -> bool:
    """Whether no check is broken; where ``strict``, whether all are kept."""
    bad = {Verdict.BROKEN, Verdict.OPEN} if strict else {Verdict.BROKEN}
    return not any(check.verdict in bad for check in checks)


def _verdict(limit: Limit, low: float, high: float) -> Verdict:
    if not limit.most:
        low, high = -high, -low
    bound = limit.bound if limit.most else -limit.bound
    if low > bound:
        return Verdict.BROKEN
    return Verdict.KEPT if high <= bound else Verdict.OPEN


def _units(values: Array, groups: Groups | None) -> Array:
    """Means of the images of each prompt, (units,)."""
    if groups is None:
        return values
    members = np.unique(groups[: len(values)], return_inverse=True)[1]
    return np.bincount(members, values) / np.bincount(members)


def _reasonable(wanted: float, had: int) -> int | None:
    """A number of images or rounds, more than there were; None where nobody would take so many."""
    return max(had + 1, math.ceil(wanted)) if wanted <= BEYOND_REASON else None
