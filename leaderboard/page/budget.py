"""The page of budget curves: one HTML file, without JavaScript and without network."""

import datetime
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantarena.bench.budget.curves import Curve, Curves, Measure, Panel, Reading, Stop
from quantarena.leaderboard.page import plot
from quantarena.leaderboard.page.format import interval, number, seconds
from quantarena.leaderboard.page.page import environment, inline
from quantarena.leaderboard.page.pareto import Span

NAMES = 150.0
"""Width in pixels of the column of names at the right of a chart."""
LINE = 15.0
"""Least distance in pixels between two of these names."""
LEAST_SECONDS = 0.01
"""A method that takes less is drawn here: a logarithmic axis has no zero."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One budget of one method as it is drawn. Positions are pixels.

    Attributes:
        x: horizontal position.
        y: vertical position.
        y_low: position of the lower end of the interval.
        y_high: position of the upper end of the interval.
        shape: name of the shape that stands for the budget.
        knee: whether the method has its knee here.
        tip: what it says when it is pointed at.
    """

    x: float
    y: float
    y_low: float
    y_high: float
    shape: str
    knee: bool
    tip: str


@dataclass(frozen=True, slots=True)
class Trace:
    """One method as it is drawn.

    Attributes:
        title: its name.
        look: classes of its look.
        dots: one for each budget with numbers, from left to right in the order of budgets.
        label_y: vertical position of its name in the column at the right.
    """

    title: str
    look: str
    dots: tuple[Dot, ...]
    label_y: float = 0.0


@dataclass(frozen=True, slots=True)
class Chart:
    """One measure against core-seconds.

    Attributes:
        measure: the measure.
        x: horizontal axis, core-seconds.
        y: vertical axis.
        traces: one for each method.
    """

    measure: Measure
    x: plot.Axis
    y: plot.Axis
    traces: tuple[Trace, ...]


@dataclass(frozen=True, slots=True)
class PanelView:
    """A panel with its charts."""

    panel: Panel
    charts: tuple[Chart, ...]


def budget_html(curves: Curves) -> str:
    """The page as HTML."""
    shapes = {
        level.factor: plot.SHAPES[number % len(plot.SHAPES)]
        for number, level in enumerate(curves.levels)
    }
    methods = sorted({curve.method for panel in curves.panels for curve in panel.curves})
    looks = {name: plot.look(place) for place, name in enumerate(methods)}
    views = [PanelView(panel, charts_of(panel, shapes, looks)) for panel in curves.panels]
    try:
        version = importlib.metadata.version("quantarena")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return (
        environment()
        .get_template("budget.html.j2")
        .render(
            curves=curves,
            views=views,
            shapes=shapes,
            looks=looks,
            plot=plot,
            names=NAMES,
            style=inline("style.css"),
            version=version,
            written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


def charts_of(panel: Panel, shapes: dict[str, str], looks: dict[str, str]) -> tuple[Chart, ...]:
    """One chart for each measure that any method has numbers for.

    Args:
        panel: the curves.
        shapes: shape of each budget.
        looks: classes of each method's look.
    """
    charts = []
    for measure in panel.measures:
        drawn = [(curve, found) for curve in panel.curves if (found := known(curve, measure))]
        if not drawn:
            continue
        points = [point for _, found in drawn for point in found]
        spent = [Span(cost, cost, cost) for _, cost, _ in points]
        values = [Span(r.value, r.low, r.high) for _, _, r in points]
        right = plot.WIDTH - NAMES
        x = plot.fitted_axis(spent, plot.LEFT, right, zero=True, may_log=True)
        y = plot.fitted_axis(values, plot.HEIGHT - plot.BOTTOM, plot.TOP, zero=True, may_log=True)
        traces = [
            Trace(
                curve.title,
                looks[curve.method],
                tuple(_dot(curve, measure, point, x, y, shapes) for point in found),
            )
            for curve, found in drawn
        ]
        charts.append(Chart(measure, x, y, spread(traces)))
    return tuple(charts)


def known(curve: Curve, measure: Measure) -> list[tuple[Stop, float, Reading]]:
    """The budgets of a method that can be drawn, with their core-seconds and their reading."""
    found = []
    for stop in curve.stops:
        reading = stop.readings.get(measure.name)
        if reading is not None and stop.core_seconds is not None:
            found.append((stop, max(stop.core_seconds, LEAST_SECONDS), reading))
    return found


def _dot(
    curve: Curve,
    measure: Measure,
    point: tuple[Stop, float, Reading],
    x: plot.Axis,
    y: plot.Axis,
    shapes: dict[str, str],
) -> Dot:
    stop, cost, reading = point
    knee = curve.knees.get(measure.name)
    value = number(reading.value, reading.low, reading.high)
    ends = interval(reading.low, reading.high)
    tip = f"{curve.title}, x{stop.factor}: {value} ({ends}), {seconds(cost)} of one core"
    return Dot(
        x.at(cost),
        y.at(reading.value),
        y.at(reading.low),
        y.at(reading.high),
        shapes[stop.factor],
        knee is not None and knee.factor == stop.factor and knee.reached,
        tip,
    )


def spread(traces: Sequence[Trace]) -> tuple[Trace, ...]:
    """The traces with their names placed near the height of their last dot, none over another."""
    order = sorted(traces, key=lambda trace: trace.dots[-1].y)
    heights: list[float] = []
    for trace in order:
        above = heights[-1] + LINE if heights else plot.TOP + 4
        heights.append(max(trace.dots[-1].y, above))
    # What was pushed below the chart pushes its neighbours up again.
    lowest = plot.HEIGHT - plot.BOTTOM
    for place in reversed(range(len(heights))):
        heights[place] = min(heights[place], lowest)
        lowest = heights[place] - LINE
    placed = {id(trace): round(y, 1) for trace, y in zip(order, heights, strict=True)}
    return tuple(replace(trace, label_y=placed[id(trace)]) for trace in traces)
