"""The leaderboard page: one HTML file that needs no network, and no JavaScript to be read."""

import datetime
import functools
import importlib.metadata
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from quantarena.bench.files import write_atomic
from quantarena.bench.metrics.names import IMAGE_PAIRS
from quantarena.bench.schema import Measurement, Row
from quantarena.bench.share.provenance import Provenance
from quantarena.bench.spec import Cell
from quantarena.leaderboard.page import marks, plot, rank_plot
from quantarena.leaderboard.page.advice import Advice, advise
from quantarena.leaderboard.page.boards import (
    FIDELITY,
    QUALITY,
    metrics_of,
    quality_lines,
    short_name,
)
from quantarena.leaderboard.page.claims import claim_views
from quantarena.leaderboard.page.export import export_tables
from quantarena.leaderboard.page.format import FILTERS
from quantarena.leaderboard.page.gallery import Gallery, make_galleries, repeated
from quantarena.leaderboard.page.hardware import Clock, clocks, machines, usual_machine
from quantarena.leaderboard.page.lines import Line, board_lines
from quantarena.leaderboard.page.pareto import size_points, speed_points
from quantarena.leaderboard.ranking.board_ranking import BoardRanking
from quantarena.leaderboard.ranking.image_scores import FAMILIES
from quantarena.leaderboard.ranking.ranking import Ranking, rank_rows
from quantarena.leaderboard.ranking.read_results import BoardId, Loaded, by_board, load_rows

TEMPLATES = Path(__file__).parent / "templates"
MOST_COLUMNS = 3
"""Largest number of fidelity metrics in the table; with more, speed and size have no room."""
MOST_RECORDS = 400
"""Largest number of lines whose cells are shown in full; beyond, the page would be too large."""
_INDENT = re.compile(r">\n\s*<")
IN_RECORDS = ("latent-mse", "ssim")
"""Metrics that move to the record of a cell when there are more."""


@dataclass(frozen=True, slots=True)
class BoardView:
    """Everything that the template needs about one board.

    Attributes:
        number: position on the page, from 1; HTML identifiers contain it.
        board: what is compared.
        title: heading.
        ranking: the fidelity ranking, None where the board has no rows.
        lines: lines of the tables.
        fidelity: one measurement for each metric column of the fidelity board.
        quality: one measurement for each metric column of the quality board.
        uncomputed: quality measurements that no line has a value for.
        ranked: lines of the quality board in order.
        advice: the recommendation.
        speed: plot of fidelity against speed-up.
        size: plot of fidelity against bytes.
        flow: plots of how ranks change, one for each width.
        gallery: images, if there are any.
        scale: axis of the small intervals in the table, of the logarithm of a factor.
        higher: whether a larger value of the judge's metric is better.
        clocks: the machines that timed its rows, the one of the table's times first.
    """

    number: int
    board: BoardId
    title: str
    ranking: BoardRanking | None
    lines: tuple[Line, ...]
    fidelity: tuple[Measurement, ...]
    quality: tuple[Measurement, ...]
    uncomputed: tuple[Measurement, ...]
    ranked: tuple[Line, ...]
    advice: Advice
    speed: plot.Plot | None
    size: plot.Plot | None
    flow: tuple[rank_plot.RankPlot, ...]
    gallery: Gallery | None
    scale: plot.Axis | None
    higher: bool
    clocks: tuple[Clock, ...] = ()

    def at(self, factor: float) -> float:
        """Place of a factor on the axis of the small intervals."""
        return self.scale.at(math.log(factor)) if self.scale else 0.0

    @property
    def by_method(self) -> tuple[Line, ...]:
        """The first line of each method but full precision, in the order of the colours."""
        first = {line.method: line for line in reversed(self.lines) if not line.is_fp}
        return tuple(sorted(first.values(), key=lambda line: (line.is_rival, line.method)))

    @property
    def widths(self) -> frozenset[str]:
        """The requested bits of its lines."""
        return frozenset(line.bits for line in self.lines)

    @property
    def reference(self) -> Row | None:
        """A row that describes the workload: full precision's, if it finished."""
        rows = [row for line in self.lines if line.ok for row in line.rows]
        return rows[0] if rows else None


def render(
    folder: Path,
    *,
    grid_title: str,
    planned: Sequence[Cell],
    command: str,
    ranking: Ranking | None = None,
    loaded: Loaded | None = None,
    claims: Sequence[Mapping[str, Any]] = (),
    tables: bool = True,
) -> Path:
    """Write ``leaderboard.html``, ``rows.csv`` and ``rows.parquet`` into a results folder.

    Args:
        folder: such as ``results/quick``.
        grid_title: title of the page.
        planned: every planned cell; those without a row are shown as missing.
        command: command line that reproduces the folder.
        ranking: of the folder's rows, where the caller has it already.
        loaded: the folder's rows, where the caller has read them.
        claims: outcomes of the papers' claims, as ``claim_views`` takes them.
        tables: whether the last two are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    loaded = loaded or load_rows(folder)
    if tables:
        export_tables(loaded.rows, folder)
    page = page_html(
        folder,
        loaded.rows,
        ranking or rank_rows(loaded.rows, folder),
        grid_title=grid_title,
        planned=planned,
        command=command,
        problems=loaded.problems,
        claims=claims,
        elsewhere=loaded.elsewhere,
        provenance=loaded.provenance,
    )
    path = folder / "leaderboard.html"
    write_atomic(path, page)
    return path


def page_html(
    folder: Path,
    rows: Sequence[Row],
    ranking: Ranking,
    *,
    grid_title: str,
    planned: Sequence[Cell],
    command: str,
    problems: Sequence[str] = (),
    claims: Sequence[Mapping[str, Any]] = (),
    elsewhere: Sequence[Row] = (),
    provenance: Provenance | None = None,
) -> str:
    """The page as HTML."""
    views = board_views(folder, rows, ranking, planned, elsewhere)
    lines = [line for view in views for line in view.lines]
    pictures = repeated([view.gallery for view in views])
    context: dict[str, Any] = {
        "title": grid_title,
        "command": command,
        "views": views,
        "lines": lines,
        "key": plot.key_of(lines),
        "pictures": pictures,
        "picture": lambda uri: f"var({pictures[uri]})" if uri in pictures else f"url({uri})",
        "tally": tally(lines),
        "ranking": ranking,
        "titles": {line.method: line.title for line in lines if "[" not in line.title},
        "problems": problems,
        "claims": claim_views(claims),
        "outside": len({row.cell for row in rows} - set(planned)) if planned else 0,
        "machines": machines((*rows, *elsewhere)),
        "provenance": provenance,
        "rescored": IMAGE_PAIRS,
        "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": _version(),
        "python": platform.python_version(),
        "style": inline("style.css"),
        "script": inline("page.js"),
        "plot": plot,
        "ranks": rank_plot,
        "short_name": short_name,
        "in_full": len(lines) <= MOST_RECORDS,
    }
    page = environment().get_template("page.html.j2").render(context)
    return _INDENT.sub(">\n<", page)


def board_views(
    folder: Path,
    rows: Sequence[Row],
    ranking: Ranking,
    planned: Sequence[Cell],
    elsewhere: Sequence[Row] = (),
) -> tuple[BoardView, ...]:
    """One view per board in the order of the plan; boards outside the plan come last."""
    rows_of = by_board(rows)
    boards = list(dict.fromkeys([*(BoardId.of(cell) for cell in planned), *rows_of]))
    cells_of: dict[BoardId, list[Cell]] = {board: [] for board in boards}
    for cell in planned:
        cells_of[BoardId.of(cell)].append(cell)
    tables = [
        board_lines(
            board,
            rows_of.get(board, ()),
            cells_of[board],
            ranking.board(board),
            ranking.ends.get(board),
            elsewhere,
        )
        for board in boards
    ]
    key = plot.key_of([line for lines in tables for line in lines])
    galleries = make_galleries(folder, tables)
    titles = [board.title for board in boards]
    timed = by_board((*rows, *elsewhere))
    return tuple(
        _view(
            number,
            board,
            board.title if titles.count(board.title) == 1 else f"{board.title} · {board.budget}",
            ranking.board(board),
            lines,
            gallery,
            key,
            clocks(timed.get(board, ()), usual_machine(timed.get(board, ()))),
        )
        for number, (board, lines, gallery) in enumerate(
            zip(boards, tables, galleries, strict=True), 1
        )
    )


def _view(
    number: int,
    board: BoardId,
    title: str,
    ranking: BoardRanking | None,
    lines: tuple[Line, ...],
    gallery: Gallery | None,
    key: plot.Key,
    machines_of: tuple[Clock, ...],
) -> BoardView:
    asked = metrics_of(lines, QUALITY)
    quality = tuple(m for m in asked if any(_known(line, m.name) for line in lines))
    metric = ranking.metric if ranking else None
    higher = FAMILIES[metric.split("/")[0]] if metric else False
    standings = ranking.standings if ranking else ()
    speed = speed_points(lines, metric, y_higher=higher) if metric else ()
    size = size_points(lines, metric, y_higher=higher) if metric else ()
    ends = [math.log(end) for s in standings for end in s.span]
    return BoardView(
        number=number,
        board=board,
        title=title,
        ranking=ranking,
        lines=lines,
        fidelity=_columns(metrics_of(lines, FIDELITY)),
        quality=quality,
        uncomputed=tuple(m for m in asked if m not in quality),
        ranked=quality_lines(lines, quality[0].name) if quality else (),
        advice=advise(lines, metric, ranking.another_draw if ranking else None),
        speed=plot.make_plot(speed, key, include_x=1.0),
        size=plot.make_plot(size, key, x_zero=True),
        flow=rank_plot.rank_plots(lines),
        gallery=gallery,
        scale=plot.Axis(min(ends) - 0.1, max(ends) + 0.1, 0, 76) if ends else None,
        higher=higher,
        clocks=machines_of,
    )


def _known(line: Line, name: str) -> bool:
    figure = line.figure(name)
    return figure is not None and figure.value is not None


def tally(lines: Sequence[Line]) -> dict[str, int]:
    """Number of cells by state, such as ``{"ok": 18, "failed": 1}``."""
    counts: dict[str, int] = {}
    for line in lines:
        states = [row.status.value for row in line.rows]
        states += ["missing"] * (len(line.cells) - len(line.rows))
        for state in states:
            counts[state] = counts.get(state, 0) + 1
    order = ["ok", "skipped", "timeout", "oom", "failed", "missing"]
    return {state: counts[state] for state in order if state in counts}


def _version() -> str:
    try:
        return importlib.metadata.version("quantarena")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def inline(name: str) -> Markup:
    """A style sheet or script of the page, to be inserted as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


@functools.cache
def environment() -> jinja2.Environment:
    """The templates of all pages, with the filters of ``format``."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= FILTERS | {"sortable": marks.sortable}
    made.globals |= {
        "attrs": marks.attrs,
        "glyph": marks.glyph,
        "mark": marks.mark,
        "shape": marks.shape,
        "value": marks.value,
    }
    return made


def _columns(measured: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """The metrics that have a column in the table."""
    columns = list(measured)
    for name in IN_RECORDS:
        if len(columns) > MOST_COLUMNS:
            columns = [m for m in columns if m.name.split("/")[0] != name]
    return tuple(columns)
