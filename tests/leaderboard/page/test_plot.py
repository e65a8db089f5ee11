import pytest

from quantarena.leaderboard.page.pareto import Point, Span
from quantarena.leaderboard.page.plot import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Key,
    make_plot,
)


class Made:
    is_fp = False

    def __init__(self, method, bits):
        self.method, self.title, self.bits, self.name = method, method, bits, f"{method}@{bits}"


KEY = Key(("a", "b"), ("w8a8", "w4a8"))


def points(*places):
    return [
        Point(
            Made("ab"[n % 2], ("w8a8", "w4a8")[n % 2]),
            Span(x, x * 0.95, x * 1.05),
            Span(y, y * 0.8, y * 1.2),
        )
        for n, (x, y) in enumerate(places)
    ]


@pytest.mark.parametrize(
    "places",
    [
        [(1.5, 0.1)],
        [(1.5, 0.1)] * 5,
        [(0.2, 0.001), (3.0, 0.9)],
        [(1.0, 0.0), (1.1, 0.0)],
        [(50.0, 1e-9), (0.01, 1e3)],
    ],
)
def test_everything_stays_inside_the_frame(places):
    plot = make_plot(points(*places), KEY, include_x=1.0)
    for mark in plot.marks:
        for x in (mark.x, mark.x_low, mark.x_high):
            assert LEFT <= x <= WIDTH - RIGHT
        for y in (mark.y, mark.y_low, mark.y_high):
            assert TOP <= y <= HEIGHT - BOTTOM
    assert LEFT <= plot.x.at(1.0) <= WIDTH - RIGHT
    assert 2 <= len(plot.x.ticks) <= 12


def test_labels_keep_apart():
    plot = make_plot(points(*[(1.5 + n / 1000, 0.1) for n in range(12)]), KEY)
    named = [mark for mark in plot.marks if mark.label]
    assert 0 < len(named) < 12
    assert len({(mark.label_x, mark.label_y) for mark in named}) == len(named)


def test_wide_ranges_are_logarithmic_with_round_ticks():
    axis = Axis(0.002, 0.9, 0, 100, log=True)
    assert [tick.label for tick in axis.ticks] == [
        "0.002",
        "0.005",
        "0.01",
        "0.02",
        "0.05",
        "0.1",
        "0.2",
        "0.5",
    ]
    assert axis.at(0.0) == 0
    assert make_plot(points((1, 0.001), (2, 0.5)), KEY).y.log
    assert not make_plot(points((1, 0.1), (2, 0.2)), KEY).y.log


def test_an_axis_of_many_decades_has_no_more_labels_than_fit():
    axis = Axis(5e-10, 0.3, 0, 100, log=True)
    assert [tick.label for tick in axis.ticks][:2] == ["1e-09", "1e-08"]
    for low in (1e-5, 1e-9, 1e-20):
        assert 2 <= len(Axis(low, 1.0, 0, 100, log=True).ticks) <= 12


def test_nothing_to_draw():
    assert make_plot([], KEY) is None
