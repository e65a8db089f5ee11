"""What a page costs as rows become many, in counts that no busy machine changes."""

import itertools
from collections import Counter

import numpy as np
import pytest

from quantarena.leaderboard.inference import sign_flips
from quantarena.leaderboard.page import gallery, pareto
from quantarena.leaderboard.page.page import board_views, page_html
from quantarena.leaderboard.ranking import ranking, read_results


@pytest.fixture
def counted(monkeypatch):
    """Counts calls of a function by name, and by its first argument."""
    counts = Counter()

    def count(module, name, key=lambda *args: ()):
        real = getattr(module, name)

        def counting(*args, **named):
            counts[name, key(*args)] += 1
            return real(*args, **named)

        monkeypatch.setattr(module, name, counting)
        return counts

    return count


def test_a_scores_file_is_read_once_for_ranking_and_page(results, counted):
    folder, planned = results
    read_results._kept.cache_clear()
    counts = counted(read_results, "read_scores", lambda path: path)
    rows = read_results.load_rows(folder).rows
    found = ranking.rank_rows(rows, folder)
    page_html(folder, rows, found, grid_title="t", planned=planned, command="c")
    assert len(counts) == sum("scores" in row.artefacts for row in rows)
    assert set(counts.values()) == {1}


def test_known_rows_are_not_read_again(results, counted):
    folder, _ = results
    loaded = read_results.load_rows(folder)
    counts = counted(read_results, "parse_row")
    assert read_results.load_rows(folder, known=loaded.rows) == loaded
    assert not counts


def test_a_full_gallery_encodes_no_more_images(tmp_path, make_results, make_grid, counted):
    methods = tuple(f"m{n:02d}" for n in range(30))
    grid = make_grid(images=8, workloads=("synthetic-blobs",), methods=methods, bits=("w4a4",))
    planned = make_results(tmp_path, plan=grid, broken=False)
    counts = counted(gallery, "_uri")
    rows = read_results.load_rows(tmp_path).rows
    found = ranking.rank_rows(rows, tmp_path)
    views = board_views(tmp_path, rows, found, planned)
    lines = [view.lines for view in views]
    whole = counts["_uri", ()]
    counts.clear()
    (few,) = gallery.make_galleries(tmp_path, lines, budget=60_000)
    assert 0 < len(few.others) < 30
    assert len(few.others) + len(few.left_out) == 30
    assert counts["_uri", ()] < whole / 2


def test_the_front_is_what_no_other_point_dominates():
    rng = np.random.default_rng(3)
    values, width = rng.integers(0, 9, (60, 2)).astype(float), rng.uniform(0, 3, (60, 2))
    points = [
        pareto.Point(
            _Named(f"p{n}"), *(pareto.Span(v, v - w, v + w) for v, w in zip(*pair, strict=True))
        )
        for n, pair in enumerate(zip(values, width, strict=True))
    ]
    for x_higher, y_higher in itertools.product((False, True), repeat=2):
        marked = pareto.front(points, x_higher=x_higher, y_higher=y_higher)
        for point, found in zip(points, marked, strict=True):
            above = [
                other.line.name
                for other in points
                if other is not point
                and (other.x.value >= point.x.value if x_higher else other.x.value <= point.x.value)
                and (other.y.value >= point.y.value if y_higher else other.y.value <= point.y.value)
                and (_apart(other.x, point.x) or _apart(other.y, point.y))
            ]
            assert (found.dominated, found.by) == (bool(above), above[0] if above else "")


def _apart(one, other):
    return one.high < other.low or other.high < one.low


class _Named:
    def __init__(self, name):
        self.name = name


def test_no_more_than_a_block_of_statistics_is_held():
    """80 contestants have 3,160 pairs: all patterns at once would take fifty megabytes."""
    rng = np.random.default_rng(0)
    one, other = np.triu_indices(80, 1)
    table = rng.normal(size=(80, 16))
    gaps = table[one] - table[other]
    sizes = np.full(len(gaps), 16)
    blocks = [
        len(block) for block in sign_flips._statistics(gaps, sizes, sign_flips.sign_patterns(16))
    ]
    assert sum(blocks) == sign_flips.DRAWS
    assert max(blocks) == sign_flips.BLOCK
