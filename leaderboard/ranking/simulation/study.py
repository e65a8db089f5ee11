"""Many simulated runs of several engines, as medians with ranges, in votes and in image views."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantarena.leaderboard.ranking.engines.plackett_luce import PlackettLuce
from quantarena.leaderboard.ranking.engines.posterior import Engine
from quantarena.leaderboard.ranking.engines.registry import ENGINES, MATCHERS, OWN_MATCHER
from quantarena.leaderboard.ranking.simulation.runs import Setup, Trace, simulate

LEVELS = (0.9, 0.95)
RATERS: Mapping[str, Callable[[], Engine]] = {
    **ENGINES,
    # A bootstrap at every look would take hours.
    "plackett-luce": lambda: PlackettLuce(resamples=0),
}
"""The engines as they are simulated."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A number of votes over all runs.

    Attributes:
        median: the median; None where half of the runs or more never got there.
        low: the smallest.
        high: the largest; None where a run never got there.
        reached: number of runs that got there.
        runs: number of runs.
    """

    median: float | None
    low: int | None
    high: int | None
    reached: int
    runs: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One engine in one setup.

    Attributes:
        engine: name of the engine.
        matcher: name of how matches were chosen.
        setup: what was simulated.
        seeds: of the runs.
        tau: votes to each of ``LEVELS`` of Kendall's tau.
        exact: votes from which on the order was exact to the end of the run.
        coverage: mean over runs and looks of the share of pairs whose 95 % interval holds the
            truth; None without intervals.
        coverage_end: the same at the end of the runs only.
        claims: median number of true claims at the end of a run.
        false_runs: number of runs in which any look found a false claim.
        curve: tau at each measurement, the median over the runs.
        curve_at: number of votes of each measurement.
    """

    engine: str
    matcher: str
    setup: Setup
    seeds: tuple[int, ...]
    tau: tuple[Spread, ...]
    exact: Spread
    coverage: float | None
    coverage_end: float | None
    claims: float
    false_runs: int
    curve: tuple[float, ...]
    curve_at: tuple[int, ...]

    @property
    def views(self) -> int:
        """Images that one vote looks at."""
        return min(self.setup.size, self.setup.models)


def spread(values: Sequence[int | None]) -> Spread:
    """Median and range of numbers of votes; None is later than any number."""
    found = sorted(value for value in values if value is not None)
    padded = sorted(np.inf if value is None else float(value) for value in values)
    half = len(padded) // 2
    middle = (padded[half] + padded[-half - 1]) / 2 if padded else np.inf
    return Spread(
        median=middle if np.isfinite(middle) else None,
        low=found[0] if found else None,
        high=found[-1] if found and len(found) == len(values) else None,
        reached=len(found),
        runs=len(values),
    )


def study(
    engine: str,
    setup: Setup,
    seeds: Sequence[int],
    *,
    matcher: str | None = None,
    done: Callable[[int, int], None] = lambda run, runs: None,
) -> Outcome:
    """Simulate one run for each seed.

    Args:
        engine: a name in ``RATERS``.
        setup: what is simulated.
        seeds: one run each.
        matcher: a name in ``MATCHERS``; the engine's own if none.
        done: is told after each run how many are done, and of how many.

    Raises:
        KeyError: an unknown engine or matcher.
        ImportError: the engine's package is not installed.
    """
    way = matcher or OWN_MATCHER[engine]
    rater = RATERS[engine]()
    traces: list[Trace] = []
    for seed in seeds:
        traces.append(simulate(rater, MATCHERS[way], setup, seed))
        done(len(traces), len(seeds))
    covered = [trace.covered for trace in traces if len(trace.covered)]
    return Outcome(
        engine=engine,
        matcher=way,
        setup=setup,
        seeds=tuple(seeds),
        tau=tuple(spread([trace.first(level) for trace in traces]) for level in LEVELS),
        exact=spread([trace.exact() for trace in traces]),
        coverage=float(np.mean(np.concatenate(covered))) if covered else None,
        coverage_end=float(np.mean([one[-1] for one in covered])) if covered else None,
        claims=float(np.median([trace.right[-1] for trace in traces])),
        false_runs=sum(bool(trace.wrong.any()) for trace in traces),
        curve=tuple(float(v) for v in np.median([trace.tau for trace in traces], axis=0)),
        curve_at=tuple(int(v) for v in traces[0].at),
    )
