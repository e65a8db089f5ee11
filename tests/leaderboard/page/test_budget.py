"""The page of budget curves: its numbers, its drawing, and what is missing."""

import itertools
import re
from dataclasses import replace

import pytest

from quantarena.bench.budget.curves import (
    Curve,
    Curves,
    Knee,
    Level,
    Measure,
    Panel,
    Reading,
    Stop,
    Verdict,
)
from quantarena.leaderboard.page import plot
from quantarena.leaderboard.page.budget import LINE, budget_html, charts_of

FACTORS = ("1/4", "1", "4")
ERROR = Measure("noise-sqnr", "error of one call", "", higher=False)
SHAPES = dict(zip(FACTORS, plot.SHAPES, strict=False))


def reading(value):
    return Reading(value, 0.9 * value, 1.1 * value, 32)


def curve(method, values, seconds=(1.0, 5.0, 20.0), knee=None):
    stops = tuple(
        Stop(factor, "ok", "", cost, {ERROR.name: reading(value)})
        if value is not None
        else Stop(factor, "failed", "it broke", None, {})
        for factor, value, cost in zip(FACTORS, values, seconds, strict=True)
    )
    return Curve(method, method.upper(), stops, {ERROR.name: knee} if knee else {})


def curves(*found):
    verdicts = [Verdict(f, ERROR.name, ("DGQ",), f"DGQ wins at {f}") for f in FACTORS]
    panel = Panel("w", "w4a4", (ERROR,), found, tuple(verdicts))
    levels = tuple(Level(factor, f"c-x{factor}", "25 iterations") for factor in FACTORS)
    return Curves("Budget curves: <quick>", "quantarena budget quick", levels, (panel,), ("cpu",))


def charts(*found):
    (panel,) = curves(*found).panels
    looks = {each.method: plot.look(n) for n, each in enumerate(found)}
    return charts_of(panel, SHAPES, looks)


def test_a_curve_goes_right_with_cost_and_down_with_error():
    (chart,) = charts(curve("dgq", (0.08, 0.04, 0.02)))
    (trace,) = chart.traces
    assert [d.x for d in trace.dots] == sorted(d.x for d in trace.dots)
    assert [d.y for d in trace.dots] == sorted(d.y for d in trace.dots)
    assert all(d.y_high < d.y < d.y_low for d in trace.dots)
    assert [d.shape for d in trace.dots] == list(SHAPES.values())


def test_a_ring_is_at_the_knee_and_only_where_it_was_reached():
    (chart,) = charts(
        curve("dgq", (0.08, 0.04, 0.04), knee=Knee("1", 5.0, True)),
        curve("rtn", (0.08, 0.04, 0.02), knee=Knee("4", 20.0, False)),
    )
    assert [[dot.knee for dot in trace.dots] for trace in chart.traces] == [
        [False, True, False],
        [False, False, False],
    ]


def test_names_never_lie_over_each_other():
    (chart,) = charts(*(curve(f"m{n}", (0.08, 0.04, 0.0200 + n / 1e5)) for n in range(13)))
    heights = sorted(trace.label_y for trace in chart.traces)
    assert all(b - a >= LINE - 0.2 for a, b in itertools.pairwise(heights))
    assert heights[0] >= plot.TOP
    assert heights[-1] <= plot.HEIGHT - plot.BOTTOM


@pytest.mark.parametrize("seconds", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)])
def test_methods_that_cost_nothing_are_drawn_too(seconds):
    (chart,) = charts(curve("rtn", (0.08, 0.08, 0.08), seconds))
    assert len(chart.traces[0].dots) == 3
    assert chart.x.low < chart.x.high


def test_the_page_says_who_wins_what_failed_and_escapes():
    page = budget_html(curves(curve("dgq", (0.08, 0.04, 0.02)), curve("rtn", (0.1, None, 0.09))))
    assert "Budget curves: &lt;quick&gt;" in page
    assert "DGQ wins at 1/4" in page
    assert 'title="it broke">failed' in page
    assert page.count("<polyline") == 4  # a curve and a leader for each method
    assert "<script" not in page
    assert len(re.findall('class="num best"', page)) == 3


def test_a_page_without_numbers_is_a_page():
    assert "No cell here has scores yet" in budget_html(curves(curve("dgq", (None,) * 3)))
    assert "Nothing is planned" in budget_html(replace(curves(), panels=()))
