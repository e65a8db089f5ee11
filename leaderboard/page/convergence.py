"""The plot of a simulated ranking: Kendall's tau against votes and against image views, as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from quantarena.leaderboard.page import plot
from quantarena.leaderboard.page.page import environment
from quantarena.leaderboard.ranking.simulation.study import LEVELS, Outcome

WIDTH, HEIGHT = 470.0, 330.0
"""Size of one of the two panels, in pixels."""
LEGEND = 22.0
"""Height of one line of the legend, in pixels."""
LOWEST = 0.4
"""Smallest tau shown; below it all engines are new to the votes."""
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#777777", "#8c564b")


@dataclass(frozen=True, slots=True)
class Trace:
    """One engine as it is drawn: its name, its colour, and the points of its curve in pixels."""

    title: str
    colour: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One of the two panels: what its horizontal axis counts, the axes, the traces."""

    unit: str
    left: float
    x: plot.Axis
    y: plot.Axis
    traces: tuple[Trace, ...]


def convergence_svg(outcomes: Sequence[Outcome], title: str) -> str:
    """The plot as one SVG document.

    Args:
        outcomes: what to draw, the median of tau over the runs of each.
        title: heading of the plot.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not any(outcome.curve for outcome in outcomes):
        raise ValueError("nothing to draw: no run was simulated")
    panels = tuple(
        _panel(outcomes, unit, number * WIDTH) for number, unit in enumerate(("votes", "views"))
    )
    template = environment().get_template("convergence.svg.j2")
    return str(
        template.render(
            title=title,
            panels=panels,
            levels=LEVELS,
            width=2 * WIDTH,
            panel_width=WIDTH,
            height=HEIGHT,
            whole=HEIGHT + LEGEND * ((len(outcomes) + 1) // 2) + 6,
            legend=LEGEND,
            lowest=LOWEST,
        )
    )


def _panel(outcomes: Sequence[Outcome], unit: str, left: float) -> Panel:
    scales = [outcome.views if unit == "views" else 1 for outcome in outcomes]
    spans = [
        float(votes * scale)
        for outcome, scale in zip(outcomes, scales, strict=True)
        for votes in outcome.curve_at
    ]
    low = max(min(spans), 1.0)
    x = plot.Axis(low, max(max(spans), 2.0 * low), left + plot.LEFT, left + WIDTH - 16.0, log=True)
    y = plot.Axis(LOWEST, 1.0, HEIGHT - plot.BOTTOM, 40.0)
    traces = tuple(
        Trace(
            _name(outcome),
            COLOURS[number % len(COLOURS)],
            tuple(
                (x.at(votes * scale), y.at(tau))
                for votes, tau in zip(outcome.curve_at, outcome.curve, strict=True)
            ),
        )
        for number, (outcome, scale) in enumerate(zip(outcomes, scales, strict=True))
    )
    return Panel(unit, left, x, y, traces)


def _name(outcome: Outcome) -> str:
    return f"{outcome.engine}, K = {outcome.views}, matches: {outcome.matcher}"
