import dataclasses
import json

import numpy as np
import pytest

from quantarena.bench.schema import Row, Status
from quantarena.bench.scores import UNITS
from quantarena.leaderboard.ranking.ranking import rank_results, write_ranking
from quantarena.leaderboard.ranking.read_results import BoardId, contestant, load_rows, load_scores

LPIPS = "lpips/alex-v0.1"


@pytest.fixture(scope="module")
def ranking(results):
    return rank_results(results[0])


def board(ranking, workload):
    return next(found for found in ranking.boards if found.board.workload == workload)


def test_one_board_a_workload_and_only_quantized_ok_cells_compete(ranking):
    assert [b.board.workload for b in ranking.boards] == ["synthetic-blobs", "synthetic-shapes"]
    blobs = board(ranking, "synthetic-blobs")
    assert {s.contestant for s in blobs.standings} == {
        "q_diffusion@w8a8",
        "q_diffusion@w4a8",
        "rtn@w8a8",
        "rtn@w4a8",
        "rtn@w4a4",
        "steady@w8a8",
    }
    assert blobs.unranked["fp@fp"] == "the reference"
    assert blobs.unranked["steady@w4a8"] == "failed: NaN in mid_block.attn at step 7"
    assert blobs.unranked["q_diffusion@w4a4"].startswith("timeout")


def test_planted_order_comes_back_within_each_width(ranking):
    shapes = board(ranking, "synthetic-shapes")
    methods = {"w8a8": ["q_diffusion", "steady", "rtn"], "w4a8": ["q_diffusion", "rtn"]}
    for bits, order in methods.items():
        assert [s.method for s in shapes.standings if s.bits == bits] == order
    assert [s.bits for s in shapes.standings] == sorted(
        (s.bits for s in shapes.standings), key=["w8a8", "w4a8", "w4a4"].index
    )


def test_standings_are_consistent(ranking):
    for found in ranking.boards:
        for bits in {s.bits for s in found.standings}:
            members = [s for s in found.standings if s.bits == bits]
            assert members[0].factor == 1
            assert [s.factor for s in members] == sorted(s.factor for s in members)
            if len(members) > 1:
                assert np.mean([s.wins for s in members]) == pytest.approx(0.5)
            for s in members:
                assert s.rivals == len(members)
                assert s.factor_low <= s.factor <= s.factor_high
                assert 1 <= s.best_rank <= s.worst_rank <= len(members)
                assert 1 <= s.wins_best <= s.wins_worst <= len(members)
                assert len(s.ties) == s.worst_rank - s.best_rank
                assert s.tail <= s.worst


def test_margin_and_floor_are_stated(ranking):
    for found in ranking.boards:
        assert found.metric == LPIPS
        assert 0.003 < found.margin < 0.006
        assert "median" in found.margin_source
        assert found.floor == pytest.approx(0.0044, abs=0.001)


def test_ranking_is_a_function_of_the_folder(results, ranking):
    assert rank_results(results[0]) == ranking


def test_ranking_writes_nothing_but_the_file_asked_for(tmp_path, make_results, make_grid):
    make_results(tmp_path, plan=make_grid(images=8), pictures=False)
    before = {path for path in tmp_path.rglob("*")}
    rank_results(tmp_path)
    assert {path for path in tmp_path.rglob("*")} == before
    ranking = write_ranking(tmp_path)
    data = json.loads((tmp_path / "ranking.json").read_text())
    assert data == json.loads(json.dumps(ranking.to_dict()))
    assert {path for path in tmp_path.rglob("*")} == before | {tmp_path / "ranking.json"}
    assert data["schema_version"] == 2
    assert data["boards"][0]["standings"][0]["contestant"] == "q_diffusion@w8a8"


@pytest.mark.parametrize("make", ["absent", "empty", "failed"])
def test_nothing_to_rank(tmp_path, make, make_results, make_grid):
    folder = tmp_path / "results"
    if make != "absent":
        (folder / "rows").mkdir(parents=True)
    if make == "failed":
        for cell in make_grid().cells():
            row = Row(cell, Status.FAILED, "broken")
            (folder / "rows" / f"{row.key}.json").write_text(json.dumps(row.to_dict()))
    assert all(not found.standings for found in rank_results(folder).boards)


def test_one_contestant_makes_no_claim(tmp_path, make_results, make_grid):
    make_results(tmp_path, plan=make_grid(methods=("rtn",), bits=("w8a8",)), broken=False)
    for found in rank_results(tmp_path).boards:
        (only,) = found.standings
        assert (only.best_rank, only.worst_rank, only.rivals) == (1, 1, 1)
        assert (only.factor, only.wins, only.ties) == (1.0, 0.5, ())


def test_seeds_are_more_prompts_of_one_contestant(tmp_path, make_results, make_grid):
    plan = dataclasses.replace(make_grid(images=8), seeds=(0, 1, 2))
    make_results(tmp_path, plan=plan, pictures=False, broken=False)
    found = rank_results(tmp_path).boards[0]
    assert len(found.standings) == 9
    assert found.units == 24
    assert all(s.units == 24 for s in found.standings)


def test_images_of_one_prompt_are_one_unit_of_evidence(tmp_path, make_results, make_grid):
    plan = dataclasses.replace(make_grid(images=8), seeds=(0, 1, 2))
    make_results(tmp_path, plan=plan, pictures=False, broken=False)
    alone = rank_results(tmp_path).boards[0]
    for path in (tmp_path / "scores").glob("*.npz"):
        with np.load(path) as archive:
            scores = dict(archive)
        np.savez(path, **scores, **{UNITS: np.array([3, 3, 3, 3, 5, 5, 5, 5.0])})
    found = rank_results(tmp_path).boards[0]
    assert (alone.units, found.units) == (24, 2)
    assert all(s.units == 2 for s in found.standings)
    assert all(s.best_rank == 1 for s in found.standings), "two prompts prove nothing"
    assert any(s.best_rank > 1 for s in alone.standings)


def test_policies_variants_and_budgets_are_never_mixed(tmp_path, make_results, make_grid):
    plan = make_grid(images=8, workloads=("synthetic-blobs",), bits=("w8a8",))
    make_results(tmp_path, plan=plan, pictures=False, broken=False)
    other = dataclasses.replace(plan, variants=("release",), policies=("published",))
    make_results(tmp_path, plan=other, pictures=False, broken=False)
    smaller = make_grid(images=6, workloads=("synthetic-blobs",), bits=("w8a8",))
    make_results(tmp_path, plan=smaller, pictures=False, broken=False)
    boards = rank_results(tmp_path).boards
    assert len(boards) == 3
    assert {len(found.standings) for found in boards} == {3}
    assert {found.board.title for found in boards} == {
        "synthetic-blobs",
        "synthetic-blobs · published policy · release variant",
    }


def test_damaged_files_are_reported_not_fatal(tmp_path, make_results, make_grid):
    make_results(tmp_path, plan=make_grid(images=6), pictures=False, broken=False)
    (tmp_path / "rows" / "cut.json").write_text('{"key": "0123')
    (tmp_path / "rows" / "list.json").write_text("[]")
    (tmp_path / "rows" / "edited.json").write_text('{"digest": "x", "schema_version": 1}')
    loaded = load_rows(tmp_path)
    assert len(loaded.rows) == 20
    assert len(loaded.problems) == 3
    row = next(row for row in loaded.rows if row.cell.method == "rtn")
    (tmp_path / row.artefacts["scores"]).write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match="not a zip file"):
        load_scores(tmp_path, row)
    found = next(b for b in rank_results(tmp_path).boards if b.board == BoardId.of(row.cell))
    reason = found.unranked[contestant(row.cell)]
    assert reason == "its scores file cannot be read (File is not a zip file): run the cell again"
