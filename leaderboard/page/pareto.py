"""Pareto fronts of the plots: which points are dominated by another in fidelity and cost."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantarena.leaderboard.page.lines import Line

Ends = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Span:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def ends(self) -> Ends:
        """The interval as a pair."""
        return self.low, self.high


@dataclass(frozen=True, slots=True)
class Point:
    """A line of a board as a point in a plot of two measures.

    Attributes:
        line: the line.
        x: horizontal measure.
        y: vertical measure.
        dominated: whether another point is at least as good in both measures, and better by more
            than the intervals in one.
        by: name of that other point's line.
    """

    line: Line
    x: Span
    y: Span
    dominated: bool = False
    by: str = ""


def overlap(one: Ends, other: Ends) -> bool:
    """True when two intervals share a point, so that their values are tied."""
    return one[0] <= other[1] and other[0] <= one[1]


def front(
    points: Sequence[Point], *, x_higher: bool = True, y_higher: bool = False
) -> tuple[Point, ...]:
    """The same points, each marked with whether another point dominates it.

    A point dominates another if it is at least as good on both axes, with separate intervals on
    one of them.

    Args:
        points: to mark.
        x_higher: whether a larger x is better.
        y_higher: whether a larger y is better.
    """
    spans = [(p.x.value, p.x.low, p.x.high, p.y.value, p.y.low, p.y.high) for p in points]
    x, x_low, x_high, y, y_low, y_high = np.array(spans, dtype=float).reshape(-1, 6).T
    marked = []
    for number, point in enumerate(points):
        good_x = x >= x[number] if x_higher else x <= x[number]
        good_y = y >= y[number] if y_higher else y <= y[number]
        apart_x = (x_low > x_high[number]) | (x_high < x_low[number])
        apart_y = (y_low > y_high[number]) | (y_high < y_low[number])
        rivals = good_x & good_y & (apart_x | apart_y)
        rivals[number] = False
        by = points[int(rivals.argmax())].line.name if rivals.any() else ""
        marked.append(Point(point.line, point.x, point.y, bool(by), by))
    return tuple(marked)


def speed_points(lines: Sequence[Line], metric: str, *, y_higher: bool) -> tuple[Point, ...]:
    """Points of fidelity against speed-up, of the lines whose latency may be ranked."""
    points = []
    for line in lines:
        y = span_of(line, metric)
        if y and line.timed and line.latency:
            time = line.latency
            x = Span(time.ratio, time.ratio_low, time.ratio_high)
            points.append(Point(line, x, y))
    return front(points, y_higher=y_higher)


def size_points(lines: Sequence[Line], metric: str, *, y_higher: bool) -> tuple[Point, ...]:
    """Points of fidelity against packed bytes as a share of full precision's bytes.

    Bytes are exact, but differences below one percent of full precision's do not count.
    """
    points = []
    for line in lines:
        y, share = span_of(line, metric), line.share
        if y and share is not None and not line.is_fp:
            points.append(Point(line, Span(share, share, share), y))
    whole = [replace(point, x=_whole_percent(point.x)) for point in points]
    marked = front(whole, x_higher=False, y_higher=y_higher)
    return tuple(replace(m, x=point.x) for m, point in zip(marked, points, strict=True))


def _whole_percent(span: Span) -> Span:
    value = round(span.value, 2)
    return Span(value, value, value)


def span_of(line: Line, metric: str) -> Span | None:
    """A measurement as a span; without an interval its ends are its value."""
    figure = line.figure(metric)
    if figure is None or figure.value is None:
        return None
    low = figure.value if figure.low is None else figure.low
    high = figure.value if figure.high is None else figure.high
    return Span(figure.value, low, high)
