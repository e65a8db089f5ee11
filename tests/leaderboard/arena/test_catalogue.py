import json
import shutil

import pytest

from quantarena.bench.scores import UNITS
from quantarena.leaderboard.arena.catalogue import board_key, plain, read_catalogue
from quantarena.leaderboard.ranking.read_results import by_board, load_rows
from quantarena.leaderboard.ranking.score_table import score_table


@pytest.fixture
def folder(make_results, make_grid, tmp_path):
    make_results(tmp_path / "r", plan=make_grid(images=6, workloads=("synthetic-shapes",)))
    return tmp_path / "r"


def edit(folder, change):
    for path in (folder / "rows").glob("*.json"):
        row = json.loads(path.read_text())
        change(row)
        path.write_text(json.dumps(row))


def test_scenes_have_every_image_and_the_reference(folder):
    catalogue = read_catalogue(folder, task="fidelity", reference=True)
    scene = catalogue.scenes[0]
    rows = [row for row in load_rows(folder).rows if row.artefacts.get("images")]
    assert set(scene.files) == {
        f"{row.cell.method}@{row.cell.bits}" for row in rows if row.cell.method != "fp"
    }
    assert scene.prompt == "red dot"
    assert scene.reference.is_file()
    assert all(path.is_file() for path in scene.files.values())
    assert len({scene.key for scene in catalogue.scenes}) == len(catalogue.scenes)
    assert catalogue.contestants[scene.board] == tuple(sorted(scene.files))


def test_full_precision_competes_where_people_say_what_they_like_and_do_not_see_it(folder):
    def competes(task, reference):
        found = read_catalogue(folder, task=task, reference=reference)
        return any("fp@fp" in scene.files for scene in found.scenes)

    assert competes("preference", False)
    assert not competes("preference", True)
    assert not competes("fidelity", False)


def test_units_are_those_of_the_automatic_judge(results):
    folder, _ = results
    catalogue = read_catalogue(folder, task="fidelity", reference=True)
    for board, rows in by_board(load_rows(folder).rows).items():
        table, _ = score_table(rows, folder)
        ours = {scene.unit for scene in catalogue.scenes if scene.board == board_key(board)}
        assert ours <= set(table.units)
        assert ours


def test_units_are_prompts_where_the_scores_say_so(folder, monkeypatch):
    import numpy as np

    for path in (folder / "scores").glob("*.npz"):
        with np.load(path) as arrays:
            kept = dict(arrays)
        np.savez(path, **kept, **{UNITS: np.array([4, 4, 5, 5, 6, 6.0])})
    found = read_catalogue(folder, task="fidelity", reference=True)
    assert [scene.unit for scene in found.scenes] == ["p0004"] * 2 + ["p0005"] * 2 + ["p0006"] * 2


def test_one_workload_only(results):
    found = read_catalogue(
        results[0], task="fidelity", reference=True, workloads=("synthetic-blobs",)
    )
    assert list(found.titles.values()) == ["synthetic-blobs"]


@pytest.mark.parametrize("what", ["rows", "images", "reference", "workload"])
def test_nothing_to_vote_on_is_one_line(folder, what):
    if what == "rows":
        shutil.rmtree(folder / "rows")
    elif what == "images":
        shutil.rmtree(folder / "images")
    elif what == "reference":
        edit(folder, lambda row: row["cell"]["method"] == "fp" and row["artefacts"].clear())
    chosen = ("none",) if what == "workload" else ()
    with pytest.raises(ValueError, match="nothing to vote on") as fault:
        read_catalogue(folder, task="fidelity", reference=True, workloads=chosen)
    assert len(str(fault.value).splitlines()) == 1


@pytest.mark.parametrize("place", ["../../etc", "/etc", "images/../../outside", "a\0b", "."])
def test_images_outside_the_folder_are_not_served(folder, place):
    (folder.parent / "outside").mkdir()
    for name in ("0000.png", "0001.png"):
        shutil.copy(next(folder.rglob("0000.png")), folder.parent / "outside" / name)
    edit(folder, lambda row: row["artefacts"].update(images=place))
    with pytest.raises(ValueError, match="nothing to vote on"):
        read_catalogue(folder, task="fidelity", reference=True)


def test_texts_are_cleaned():
    assert plain("a\nb\x00c\u202e\ud800d") == "a b c  ?d".replace("  ?", " ?")


def test_a_hostile_prompt_is_short_plain_text(folder):
    edit(folder, lambda row: row["workload"].update(prompts=["<b>\n" + "x" * 9999] * 6))
    found = read_catalogue(folder, task="fidelity", reference=True)
    assert found.scenes[0].prompt.startswith("<b> x")
    assert len(found.scenes[0].prompt) == 2000
