"""The plot of how ranks hold, and the table that says the same."""

import re
from dataclasses import replace

import pytest

from quantarena.leaderboard.page import rank_plot
from quantarena.leaderboard.page.page import board_views, page_html
from quantarena.leaderboard.ranking.ranking import rank_results
from quantarena.leaderboard.ranking.read_results import load_rows


@pytest.fixture
def seeded(tmp_path, make_results, make_grid):
    """Three methods at two widths, with three seeds: the folder, its plan and its ranking."""
    grid = make_grid(images=8, workloads=("synthetic-shapes",), bits=("w8a8", "w4a4"))
    planned = make_results(
        tmp_path, plan=replace(grid, seeds=(0, 1, 2)), pictures=False, broken=False
    )
    return tmp_path, planned, rank_results(tmp_path)


def test_a_row_for_each_contestant_inside_the_drawing(seeded):
    folder, planned, ranking = seeded
    (view,) = board_views(folder, load_rows(folder).rows, ranking, planned)
    assert [plot.bits for plot in view.flow] == ["w8a8", "w4a4"]
    for plot in view.flow:
        assert len(plot.rows) == 3
        assert plot.several
        assert [tick.label for tick in plot.ticks] == ["1", "2", "3"]
        places = [tick.at for tick in plot.ticks]
        for row in plot.rows:
            flow, s = row.standing.flow, row.standing
            assert row.whole == places[flow.whole - 1]
            assert row.possible == (places[s.best_rank - 1], places[s.worst_rank - 1])
            assert row.left_out == (places[flow.left_best - 1], places[flow.left_worst - 1])
            assert [x for x, _ in row.seeds] == [places[rank - 1] for rank in flow.by_run]
            assert len({y for _, y in row.seeds}) == 3, "marks of equal ranks stay apart"
            assert all(abs(y - row.y) < rank_plot.ROW / 2 for _, y in row.seeds)
            assert row.y < plot.height - rank_plot.BOTTOM


def test_the_table_has_the_numbers_of_the_drawing(seeded):
    folder, planned, ranking = seeded
    page = page_html(
        folder, load_rows(folder).rows, ranking, grid_title="t", planned=planned, command="c"
    )
    part = page[page.index('class="flow"') : page.index("What the numbers do not mean")]
    assert part.count('role="img"') >= 2
    assert "the table below has the numbers" in part
    rows = re.findall(r"<tr [^>]*>(.*?)</tr>", part[: part.index("</table>")], re.DOTALL)
    cells = [[re.sub(r"<[^>]+>", "", c) for c in re.findall(r"<t[hd].*?</t[hd]>", r)] for r in rows]
    (board,) = ranking.boards
    assert board.seeds == (0, 1, 2)
    wanted = [
        [str(s.flow.whole), f"{s.best_rank}–{s.worst_rank}",
         f"{s.flow.left_best}–{s.flow.left_worst}", *map(str, s.flow.by_run)]
        for s in board.standings
    ]  # fmt: skip
    assert [row[2:] for row in cells] == wanted
    assert "seed 2 alone" in part


def test_a_width_with_one_contestant_has_no_plot(results):
    folder, planned = results
    views = board_views(folder, load_rows(folder).rows, rank_results(folder), planned)
    for view in views:
        for plot in view.flow:
            assert len(plot.rows) > 1
            assert not plot.several
