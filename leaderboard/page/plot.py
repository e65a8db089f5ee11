"""Geometry of the Pareto plots, in pixels; the template draws it as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantarena.leaderboard.page.lines import Line
from quantarena.leaderboard.page.pareto import Point, Span

WIDTH, HEIGHT = 560.0, 380.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 18.0, 18.0, 52.0
GLYPH = 6.7
"""Approximate width of one character of a label in pixels, to keep labels apart."""

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "hexagon")
COLOURS, STYLES = 6, 4
"""Looks of a method: a colour, and a mark that is filled, hollow, or either with a dot in it.

More than six colours cannot be told apart by everybody who sees colours differently, so further
methods have the same colours in another style."""


def look(place: int) -> str:
    """Classes of the look of the method at that place, such as ``c2 s1``."""
    return f"c{place % COLOURS} s{place // COLOURS % STYLES}"


@dataclass(frozen=True, slots=True)
class Tick:
    """A grid line: its pixel and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from values to pixels.

    Attributes:
        low: smallest value shown.
        high: largest value shown.
        start: pixel of ``low``.
        end: pixel of ``high``.
        log: whether the scale is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Pixel of a value; values outside the axis are drawn at its end."""
        low, high, value = (
            (math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low)))
            if self.log
            else (self.low, self.high, value)
        )
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """Grid lines at round values inside the axis."""
        return tuple(Tick(self.at(v), f"{v:g}") for v in _round_values(self))


@dataclass(frozen=True, slots=True)
class Mark:
    """A point as it is drawn. Positions are pixels.

    Attributes:
        point: the point.
        x: horizontal position.
        y: vertical position.
        x_low: left end of the horizontal whisker.
        x_high: right end of the horizontal whisker.
        y_low: position of the lower end of the vertical interval.
        y_high: position of the upper end of the vertical interval.
        look: classes of the method's look.
        shape: name of the shape that stands for the bits.
        label: text beside the point, empty where there is no room for it or no need.
        label_x: horizontal position of the text.
        label_y: vertical position of the text.
        anchor: which part of the text is at ``label_x``: ``start``, ``middle`` or ``end``.
    """

    point: Point
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    look: str
    shape: str
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot ready to draw.

    Attributes:
        x: horizontal axis.
        y: vertical axis.
        marks: the points.
        front: pixels of the points that are not dominated, from left to right.
    """

    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    front: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Key:
    """One look per method and one shape per bit width, the same in every plot of a page."""

    methods: tuple[str, ...]
    bits: tuple[str, ...]

    def look(self, line: Line) -> str:
        """Classes of the look of a line's method."""
        return look(self.methods.index(line.method))

    def shape(self, bits: str) -> str:
        """Name of the shape that stands for these bits."""
        return SHAPES[self.bits.index(bits) % len(SHAPES)]


def key_of(lines: Sequence[Line]) -> Key:
    """Colours and shapes for all lines of a page, full precision left out; rivals come last."""
    rest = [line for line in lines if not line.is_fp]
    rivals = {line.method for line in rest if line.is_rival}
    methods = tuple(sorted({line.method for line in rest}, key=lambda n: (n in rivals, n)))
    return Key(methods, tuple(sorted({line.bits for line in rest}, reverse=True)))


def make_plot(
    points: Sequence[Point], key: Key, *, include_x: float | None = None, x_zero: bool = False
) -> Plot | None:
    """The layout of a plot; None without points.

    Args:
        points: to draw.
        key: colours and shapes.
        include_x: a value that the horizontal axis must contain, such as 1 for no speed-up.
        x_zero: whether the horizontal axis starts at zero.
    """
    if not points:
        return None
    x_spans = [p.x for p in points]
    if include_x is not None:
        x_spans.append(Span(include_x, include_x, include_x))
    x = fitted_axis(x_spans, LEFT, WIDTH - RIGHT, zero=x_zero)
    y = fitted_axis([p.y for p in points], HEIGHT - BOTTOM, TOP, zero=True, may_log=True)
    bare = [_mark(point, x, y, key) for point in points]
    best = sorted((mark for mark in bare if not mark.point.dominated), key=lambda m: (m.x, m.y))
    return Plot(x, y, _labelled(bare), tuple((mark.x, mark.y) for mark in best))


def _mark(point: Point, x: Axis, y: Axis, key: Key) -> Mark:
    return Mark(
        point,
        x.at(point.x.value),
        y.at(point.y.value),
        x.at(point.x.low),
        x.at(point.x.high),
        y.at(point.y.low),
        y.at(point.y.high),
        key.look(point.line),
        key.shape(point.line.bits),
    )


def fitted_axis(
    spans: Sequence[Span], start: float, end: float, *, zero: bool, may_log: bool = False
) -> Axis:
    """The axis that holds all spans, with some room around them.

    Args:
        spans: what it has to show.
        start: pixel of its low end.
        end: pixel of its high end.
        zero: whether it starts at zero, where no value is below.
        may_log: whether it is logarithmic where the values are far apart.
    """
    low, high = min(s.low for s in spans), max(s.high for s in spans)
    if may_log and low > 0 and high / low > 12:
        return Axis(low / 1.35, high * 1.25, start, end, log=True)
    from_zero = zero and low >= 0
    low = 0.0 if from_zero else low
    pad = 0.09 * ((high - low) or abs(high) or 1.0)
    return Axis(low if from_zero else low - pad, high + pad, start, end)


MOST_TICKS = 12
"""Of a logarithmic axis; more labels would touch."""


def _round_values(axis: Axis) -> list[float]:
    if axis.log:
        powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
        for steps, every in (((1, 2, 5), 1), ((1,), 1), ((1,), 2), ((1,), 5)):
            values = [float(f"{step}e{power}") for power in powers[::every] for step in steps]
            shown = [value for value in values if axis.low <= value <= axis.high]
            if len(shown) <= MOST_TICKS:
                break
        return shown
    raw = (axis.high - axis.low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first = math.ceil(axis.low / step - 1e-9)
    last = math.floor(axis.high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _labelled(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """Marks with labels: points of the front are named where the name touches nothing else."""
    taken = [(m.x - 7, m.y - 7, m.x + 7, m.y + 7) for m in marks]
    taken += [(m.x_low, m.y - 1, m.x_high, m.y + 1) for m in marks]
    taken += [(m.x - 1, m.y_high, m.x + 1, m.y_low) for m in marks]
    done = []
    for mark in marks:
        done.append(mark)
        if mark.point.dominated:
            continue
        text = f"{mark.point.line.title} {mark.point.line.bits}"
        width = GLYPH * len(text)
        for anchor, dx, dy in (
            ("start", 11, 4),
            ("end", -11, 4),
            ("start", 8, -8),
            ("end", -8, -8),
            ("start", 8, 16),
            ("end", -8, 16),
            ("middle", 0, -14),
            ("middle", 0, 23),
            ("start", mark.x_high - mark.x + 6, 4),
            ("end", mark.x_low - mark.x - 6, 4),
        ):
            left = mark.x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (left, mark.y + dy - 11, left + width, mark.y + dy + 3)
            inside = box[0] > LEFT and box[2] < WIDTH - 4 and box[1] > 2
            if inside and box[3] < HEIGHT - BOTTOM and not any(_touch(box, t) for t in taken):
                taken.append(box)
                done[-1] = _with_label(mark, text, mark.x + dx, mark.y + dy, anchor)
                break
    return tuple(done)


def _with_label(mark: Mark, text: str, x: float, y: float, anchor: str) -> Mark:
    return Mark(
        mark.point,
        mark.x,
        mark.y,
        mark.x_low,
        mark.x_high,
        mark.y_low,
        mark.y_high,
        mark.look,
        mark.shape,
        text,
        round(x, 1),
        round(y, 1),
        anchor,
    )


def _touch(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return not (one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1])
