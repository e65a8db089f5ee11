"""Paired tests of many contestants at once: studentised sign flips, the largest statistic rules.

Prompts are the units. If two contestants are equal, the difference of their scores on a prompt is
as likely to be d as -d, whatever its distribution, so flipping the signs of whole prompts makes
data that are as likely as those seen. One flip serves all pairs, which keeps their dependence. The
largest statistic over pairs, under the flips, then judges every pair (Westfall and Young, 1993;
stepwise, Romano and Wolf, 2005): the chance that any claim of a board is false is held together.
"""

from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 0.95
"""Confidence of each interval, and of the statement that all claims of a family hold at once."""

EXACT = 12
"""Up to this many units all sign patterns are tried; with more, ``DRAWS`` of them."""
DRAWS = 2048
FEWEST = 6
"""Fewest units that can separate a pair: five unanimous ones have p = 2 / 2^5 > 0.05."""
BLOCK, GROUP = 128, 64
"""Sign patterns computed at a time, and sorted statistics whose bars are looked at together."""
_NEAR = 1e-9
"""Relative gap below which two statistics are equal: sums in other orders differ by rounding."""


def sign_patterns(units: int, seed: int = 0) -> Floats:
    """(B, n) signs of +-1; the first pattern flips nothing. A pattern and its negative are one.

    All 2^(n - 1) of them up to ``EXACT`` units, else ``DRAWS`` at random.
    """
    if units <= EXACT:
        rest = np.array(list(product([1.0, -1.0], repeat=max(units - 1, 0))))
        return np.asarray(np.hstack([np.ones((len(rest), 1)), rest])[:, :units])
    drawn = np.random.default_rng(seed).integers(0, 2, (DRAWS, units))
    drawn[0] = 1
    return np.asarray(2 * drawn - 1, dtype=np.float64)


def equal_means(gaps: Floats, seed: int = 0) -> Floats:
    """Tests whether each of M pairs of contestants is equal on average, (M,) adjusted p-values.

    Args:
        gaps: (M, n) difference of each pair on each unit, NaN where one of them has no score.
        seed: of the sign patterns, where not all are tried.
    """
    known = np.isfinite(gaps)
    signs = sign_patterns(gaps.shape[1], seed)
    gaps, sizes = np.where(known, gaps, 0.0), known.sum(axis=1)
    order = least_first(next(_statistics(gaps, sizes, signs[:1]))[0])
    return adjusted(order, _statistics(gaps[order], sizes[order], signs), len(signs))


def step_down(statistics: Floats) -> Floats:
    """Adjusted p-values of M tests, (M,), which together are wrong as seldom as one alone.

    Args:
        statistics: (B, M) statistics under each sign pattern, larger against the hypothesis; the
            first row is what was seen.
    """
    order = least_first(statistics[0])
    return adjusted(order, (some[:, order] for some in in_blocks(statistics)), len(statistics))


def in_blocks(rows: Floats) -> Iterator[Floats]:
    """Some rows at a time: what is computed of so few stays in a processor's cache."""
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


def least_first(seen: Floats) -> Ints:
    """(M,) numbers of the statistics, the least one first."""
    return np.argsort(-seen, kind="stable")[::-1]


def adjusted(order: Ints, blocks: Iterable[Floats], total: int) -> Floats:
    """Adjusted p-values, (M,), of statistics that are computed block by block.

    The least statistic is judged against itself alone, each other one against all below it too. The
    largest statistic so far is needed only where it may pass a bar: columns are looked at in
    groups, and a sign pattern whose maximum before a group passes the group's highest bar, or whose
    maximum with it fails the lowest, is counted for the whole group at once.

    Args:
        order: (M,) as ``least_first`` gives it.
        blocks: (b, M) statistics of some sign patterns, their columns in that order; the first row
            of the first one is what was seen.
        total: number of patterns in all blocks.
    """
    count = len(order)
    starts = np.arange(0, count, GROUP)
    whole, reached = np.zeros(len(starts), dtype=np.int64), np.zeros(count, dtype=np.int64)
    bars = np.empty(0)
    for block in blocks if count else ():
        if not bars.size:
            bars = block[0] * (1 - _NEAR)
            lowest, highest = bars[starts], bars[np.append(starts[1:], count) - 1]
        tops = np.maximum.accumulate(np.maximum.reduceat(block, starts, axis=1), axis=1)
        passed = np.zeros(tops.shape, dtype=bool)
        passed[:, 1:] = tops[:, :-1] >= highest[1:]
        whole += np.count_nonzero(passed, axis=0)
        undecided = ~passed & (tops >= lowest)
        for number in np.flatnonzero(undecided.any(axis=0)):
            here = slice(starts[number], starts[number] + GROUP)
            open_ones = np.flatnonzero(undecided[:, number])
            largest = np.maximum.accumulate(block[open_ones, here], axis=1)
            if number:
                np.maximum(largest, tops[open_ones, number - 1, None], out=largest)
            reached[here] += np.count_nonzero(largest >= bars[here], axis=0)
    reached += np.repeat(whole, np.diff(np.append(starts, count)))
    p = np.empty(count)
    p[order] = np.maximum.accumulate(reached[::-1])[::-1] / total
    return p


def _statistics(gaps: Floats, sizes: Ints, signs: Floats) -> Iterator[Floats]:
    """(b, M) size of the studentised mean under each pattern, some patterns at a time.

    With q the sum of squares, which no flip changes, the square of Student's t is
    (n - 1) r / (1 - r) for r = sum^2 / (n q). Where all pairs have n units, it rises with |sum| /
    sqrt(n q), which takes a third of the time. All blocks share their memory: new memory for each
    would take longer than what is computed in it.
    """
    squares = np.maximum(sizes * np.square(gaps).sum(axis=1), np.finfo(float).tiny)
    if len(sizes) and (sizes == sizes[0]).all():
        scaled = np.ascontiguousarray((gaps / np.sqrt(squares)[:, None]).T)
        made = np.empty((min(BLOCK, len(signs)), len(gaps)))
        for some in in_blocks(signs):
            r = made[: len(some)]
            yield np.abs(np.matmul(some, scaled, out=r), out=r)
        return
    columns, freedom = np.ascontiguousarray(gaps.T), np.maximum(sizes - 1.0, 0.0)
    made, rest = np.empty((2, min(BLOCK, len(signs)), len(gaps)))
    for some in in_blocks(signs):
        r, left = made[: len(some)], rest[: len(some)]
        np.matmul(some, columns, out=r)
        np.square(r, out=r)
        np.divide(r, squares, out=r)
        np.minimum(r, 1 - 1e-12, out=r)
        np.divide(r, np.subtract(1, r, out=left), out=r)
        np.multiply(r, freedom, out=r)
        yield r


def mean_bounds(gaps: Floats, seed: int = 0) -> tuple[Floats, Floats]:
    """Ends of 95 % intervals of M mean differences, each (M,), by inverting the sign-flip test.

    A value is rejected as the mean if the differences from it reject zero. That holds exactly
    where the mean over some subset of units lies on one side of it, so the ends are quantiles of
    the means over random subsets (Hartigan, 1969). They hold for every symmetric distribution.

    Args:
        gaps: (M, n) differences, NaN where unknown.
        seed: of the subsets, where not all are tried.

    Returns:
        The ends; NaN where fewer than six units are known: their range is no 95 % interval.
    """
    units = gaps.shape[1]
    if units <= EXACT:
        members = np.array(list(product([0.0, 1.0], repeat=units)))[1:]
    else:
        members = np.random.default_rng(seed).integers(0, 2, (DRAWS - 1, units)).astype(float)
    known = np.isfinite(gaps)
    sizes = members @ known.T.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(sizes > 0, (members @ np.where(known, gaps, 0.0).T) / sizes, np.nan)
    ranked, filled = np.sort(means, axis=0), np.isfinite(means).sum(axis=0)
    # B means cut the line in B + 1 intervals, each of which holds the true mean equally often.
    outside = np.floor((filled + 1) * (1 - LEVEL) / 2).astype(int)
    column = np.arange(len(gaps))
    enough = (known.sum(axis=1) >= FEWEST) & (outside >= 1)
    low = ranked[np.where(enough, outside - 1, 0), column]
    high = ranked[np.where(enough, filled - outside, 0), column]
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)
