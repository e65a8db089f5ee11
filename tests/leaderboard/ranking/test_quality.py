import dataclasses

import numpy as np
import pytest

from quantarena.bench.schema import Measurement, Row, Status
from quantarena.bench.scores import REPLICATES, UNITS
from quantarena.bench.spec import Budget, Cell
from quantarena.leaderboard.page.lines import board_lines
from quantarena.leaderboard.ranking.pooled import ends_of, pooled_ends
from quantarena.leaderboard.ranking.quality import quality_standings
from quantarena.leaderboard.ranking.read_results import BoardId

KID, LPIPS = "kid/made-up", "lpips/alex-v0.1"


def row(folder, method, bits, arrays, figures, seed=0):
    """An ok row with its scores file."""
    cell = Cell("made-up", method, bits, seed=seed, budget=Budget(images=64))
    (folder / "scores").mkdir(parents=True, exist_ok=True)
    name = f"scores/{cell.key}.npz"
    np.savez(folder / name, **arrays)
    return Row(cell, Status.OK, measurements=tuple(figures), artefacts={"scores": name})


def kid(value):
    return Measurement(KID, value, value - 1, value + 1, n=64, board="quality")


def cell(folder, method, bits, value, shared, own, seed=0):
    """A cell whose metric moves with what all cells share, and a little on its own."""
    drawn = value + shared + own
    return row(folder, method, bits, {REPLICATES + KID: drawn}, [kid(value)], seed)


def test_pairs_separate_what_overlapping_intervals_hide(tmp_path):
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1.0, 400)
    rows = [
        cell(tmp_path, "fp", "fp", 9.0, shared, rng.normal(0, 0.05, 400)),
        cell(tmp_path, "a", "w4a4", 10.0, shared, rng.normal(0, 0.05, 400)),
        cell(tmp_path, "b", "w4a4", 10.4, shared, rng.normal(0, 0.05, 400)),
        cell(tmp_path, "c", "w4a4", 10.42, shared, rng.normal(0, 0.05, 400)),
    ]
    found = {s.contestant: s for s in quality_standings(rows, tmp_path)}
    assert (found["a@w4a4"].best_rank, found["a@w4a4"].worst_rank) == (2, 2)
    assert (found["b@w4a4"].best_rank, found["b@w4a4"].worst_rank) == (3, 4)
    assert (found["c@w4a4"].best_rank, found["c@w4a4"].worst_rank) == (3, 4)
    assert found["a@w4a4"].rivals == 4, "full precision is ranked in every width"
    assert found["fp@fp"].rivals == 1


def test_unpaired_noise_separates_nothing(tmp_path):
    rng = np.random.default_rng(1)
    rows = [
        cell(tmp_path, name, "w4a4", 10 + rng.normal(0, 1), 0.0, rng.normal(0, 1, 400))
        for name in ("a", "b", "c", "d")
    ]
    assert all(s.worst_rank - s.best_rank == 3 for s in quality_standings(rows, tmp_path))


def test_equal_cells_are_seldom_separated(tmp_path):
    """Means of 64 made-up images, resampled together: the null is true by construction."""
    rng = np.random.default_rng(2)
    false = 0
    for number in range(60):
        counts = rng.multinomial(64, np.full(64, 1 / 64), size=300) / 64
        rows = []
        for name in "abcd":
            images = rng.normal(size=64)
            drawn = {REPLICATES + KID: counts @ images}
            place = tmp_path / str(number)
            rows.append(row(place, name, "w4a4", drawn, [kid(float(images.mean()))]))
        found = quality_standings(rows, tmp_path / str(number))
        false += any(s.best_rank > 1 for s in found)
    assert false / 60 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_what_cannot_be_read_or_has_no_resamples_is_left_out(tmp_path):
    rng = np.random.default_rng(3)
    rows = [cell(tmp_path, name, "w4a4", 1.0, 0.0, rng.normal(0, 1, 50)) for name in "ab"]
    rows.append(row(tmp_path, "c", "w4a4", {LPIPS: np.ones(4)}, [kid(2.0)]))
    rows.append(dataclasses.replace(rows[0], artefacts={"scores": "scores/absent.npz"}))
    assert {s.contestant for s in quality_standings(rows, tmp_path)} == {"a@w4a4", "b@w4a4"}


def lpips(value):
    return Measurement(LPIPS, value, value - 0.01, value + 0.01, n=24, unit="")


def test_seeds_that_share_prompts_have_no_narrower_interval(tmp_path):
    """Prompts decide all of it: three seeds know no more than one, and quadrature says they do."""
    prompt = np.random.default_rng(4).normal(0.1, 0.03, 24)
    arrays = {LPIPS: prompt, UNITS: np.arange(24.0)}
    rows = [
        row(tmp_path, "a", "w4a4", arrays, [lpips(float(prompt.mean()))], seed) for seed in range(3)
    ]
    ends = pooled_ends(rows, tmp_path)[LPIPS]
    one = pooled_ends(rows[:1], tmp_path)[LPIPS]
    assert ends == pytest.approx(one)
    assert ends[1] - ends[0] > 2 * 0.01 / np.sqrt(3)
    board = BoardId.of(rows[0].cell)
    (line,) = board_lines(board, rows, [], None, ends_of(rows, tmp_path))
    assert (line.figure(LPIPS).low, line.figure(LPIPS).high) == pytest.approx(ends)


def test_images_without_prompts_are_more_evidence_with_every_seed(tmp_path):
    rng = np.random.default_rng(5)
    rows = []
    for seed in range(4):
        values = rng.normal(0.1, 0.03, 24)
        rows.append(row(tmp_path, "a", "w4a4", {LPIPS: values}, [lpips(0.1)], seed))
    wide, narrow = pooled_ends(rows[:1], tmp_path)[LPIPS], pooled_ends(rows, tmp_path)[LPIPS]
    assert narrow[1] - narrow[0] == pytest.approx((wide[1] - wide[0]) / 2, rel=0.3)


def test_set_metrics_are_averaged_resample_by_resample(tmp_path):
    rng = np.random.default_rng(6)
    shared = rng.normal(0, 1, 400)
    rows = [cell(tmp_path, "a", "w4a4", 10 + s, shared, 0.0, seed=s) for s in range(3)]
    low, high = pooled_ends(rows, tmp_path)[KID]
    assert low < 11 < high
    assert high - low == pytest.approx(2 * 1.96, rel=0.1)


def test_a_damaged_file_has_no_pooled_interval(tmp_path):
    rows = [row(tmp_path, "a", "w4a4", {LPIPS: np.ones(8)}, [lpips(1.0)], s) for s in range(2)]
    (tmp_path / rows[0].artefacts["scores"]).write_bytes(b"PK no zip")
    assert pooled_ends(rows, tmp_path) == {}
