"""Geometry of the plots of rank flow: one for each width of a board, a row for each contestant."""

from collections.abc import Sequence
from dataclasses import dataclass

from quantarena.leaderboard.page.lines import Line
from quantarena.leaderboard.page.plot import Axis, Tick
from quantarena.leaderboard.ranking.standings import Standing

WIDTH = 560.0
ROW = 22.0
LEFT, RIGHT, TOP, BOTTOM = 150.0, 22.0, 12.0, 46.0
SPREAD = 9.0
"""Pixels over which the marks of several seeds are spread, so that equal ranks stay apart."""
MOST_LABELS = 12
"""Largest number of ranks that are written at the axis."""


@dataclass(frozen=True, slots=True)
class RankRow:
    """One contestant as it is drawn. Positions are pixels.

    Attributes:
        line: the contestant.
        standing: its ranks.
        y: middle of its row.
        possible: ends of the ranks that are possible with 95 % confidence.
        left_out: ends of the ranks with one prompt left out.
        whole: its rank with everything.
        seeds: place of each seed's own rank, (x, y); seeds without its images are left out.
    """

    line: Line
    standing: Standing
    y: float
    possible: tuple[float, float]
    left_out: tuple[float, float]
    whole: float
    seeds: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class RankPlot:
    """The ranks of one width.

    Attributes:
        bits: the width.
        height: of the drawing, in pixels.
        rows: the contestants, the best first.
        ticks: grid lines at ranks.
        moved: number of contestants whose rank changes when some prompt is left out.
        several: whether there is more than one seed.
    """

    bits: str
    height: float
    rows: tuple[RankRow, ...]
    ticks: tuple[Tick, ...]
    moved: int
    several: bool


def rank_plots(lines: Sequence[Line]) -> tuple[RankPlot, ...]:
    """The plots of a board, in the order of its lines; widths with one contestant have none."""
    by_width: dict[str, list[tuple[Line, Standing]]] = {}
    for line in lines:
        if line.standing is not None:
            by_width.setdefault(line.bits, []).append((line, line.standing))
    return tuple(_plot(bits, ranked) for bits, ranked in by_width.items() if len(ranked) > 1)


def _plot(bits: str, ranked: Sequence[tuple[Line, Standing]]) -> RankPlot:
    count = len(ranked)
    axis = Axis(0.6, count + 0.4, LEFT, WIDTH - RIGHT)
    step = -(-count // MOST_LABELS)
    labels = [1, *range(step, count + 1, step)] if step > 1 else range(1, count + 1)
    rows = tuple(
        _row(line, standing, axis, TOP + ROW * (n + 0.5))
        for n, (line, standing) in enumerate(ranked)
    )
    return RankPlot(
        bits,
        TOP + ROW * count + BOTTOM,
        rows,
        tuple(Tick(axis.at(rank), str(rank)) for rank in labels),
        sum(s.flow.left_best != s.flow.left_worst for _, s in ranked),
        any(s.flow.by_run for _, s in ranked),
    )


def _row(line: Line, standing: Standing, axis: Axis, y: float) -> RankRow:
    flow = standing.flow
    steps = max(len(flow.by_run) - 1, 1)
    seeds = tuple(
        (axis.at(rank), round(y + SPREAD * (n / steps - 0.5), 1))
        for n, rank in enumerate(flow.by_run)
        if rank is not None
    )
    return RankRow(
        line,
        standing,
        y,
        (axis.at(standing.best_rank), axis.at(standing.worst_rank)),
        (axis.at(flow.left_best), axis.at(flow.left_worst)),
        axis.at(flow.whole),
        seeds,
    )
