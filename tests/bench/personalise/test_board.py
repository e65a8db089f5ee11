"""The board: its subjects, its scores, and, slowly, what tuning does to them and to memory."""

import numpy as np
import pytest
import torch

from quantarena.bench.errors import QuantArenaError, UnknownName
from quantarena.bench.personalise import board as boards
from quantarena.bench.personalise.board import (
    BEFORE,
    CONTESTANTS,
    FULL,
    Contestant,
    markdown,
    measured,
    request,
    verdicts,
)
from quantarena.bench.personalise.emoji import BOARD, CASES, case, views
from quantarena.bench.personalise.scores import Score, drift_values, subject_values
from quantarena.bench.workloads import emoji64
from quantarena.methods.tuning import Approach

SETTINGS = {"workload": "emoji-t2i", "bits": "w4a16", "seed": 0}
TUNEQDM = Contestant(Approach.TUNEQDM)


def test_three_single_subjects_and_a_pair_that_no_model_was_trained_on():
    assert sorted(len(CASES[name]) for name in BOARD) == [1, 1, 1, 2]
    train = {row.caption for row in emoji64.records("train")}
    words = {word for row in emoji64.records() for word in row.caption.replace(",", "").split()}
    for drawings in CASES.values():
        assert len({drawing.token for drawing in drawings}) == len(drawings)
        for drawing in drawings:
            assert drawing.caption not in train
            assert drawing.token not in words
    with pytest.raises(UnknownName, match="did you mean teapot"):
        case("teapott")


def test_views_to_learn_from_and_to_compare_with_differ():
    learned, held = views(case("owl")[0], 32)
    again, _ = views(case("owl")[0], 32)
    assert torch.equal(learned.images, again.images)
    assert learned.images.shape == held.images.shape == (4, 3, 32, 32)
    flat = torch.cat([learned.images, held.images]).flatten(1)
    assert len(torch.unique(flat, dim=0)) == 8


def test_scores_of_known_pictures():
    mine, other = (views(case(name)[0], 32)[1].images for name in ("teapot", "automobile"))
    assert subject_values(mine, mine).min() > subject_values(other, mine).max()
    seen, felt = drift_values(mine, mine)
    assert seen.tolist() == [0] * 4
    assert felt == pytest.approx([0] * 4, abs=1e-6)
    assert drift_values(mine, other)[0].min() > 0.1


def fake_row(title, approach, mean, peak):
    memory = {"network": 16 << 20, "peak": peak << 20, "prepared": 0, "preparing": 0}
    result = {"memory": memory, "updates": 5, "approach": approach, "trainable": 7, "loss": 0.1}
    score = Score(mean, mean - 0.1, mean + 0.1, 8)
    return boards.BoardRow("owl", title, {**result, "cpu_seconds": 3.0}, score, score, score, score)


def test_tables_and_verdicts():
    rows = [
        fake_row(FULL.title, "full", 0.8, 80),
        fake_row("TuneQDM", "tuneqdm", 0.75, 26),
        fake_row("PEQA", "peqa", 0.6, 24),
    ]
    table = markdown(rows).splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert "0.800 [0.700, 0.900]" in table[2]
    ours, peqa = verdicts(rows)
    assert "growth 0.16 of full fine-tuning's, peak 0.33; subject score inside" in ours
    assert "growth 0.12 of full fine-tuning's" in peqa
    assert "below the interval" in peqa


def test_a_finished_cell_is_not_run_again(tmp_path, monkeypatch):
    cell = request("owl", BEFORE, updates=5, images=1, others=1, **SETTINGS)
    assert cell.updates == 0
    failed = lambda *a, **k: type("Done", (), {"returncode": 1, "stderr": "x\nboom"})()  # noqa: E731
    monkeypatch.setattr(boards.subprocess, "run", failed)
    with pytest.raises(QuantArenaError, match="full on owl failed: boom"):
        measured(cell, tmp_path)


@pytest.mark.long
def test_tuning_moves_the_subject_score_and_takes_little_memory(tmp_path):
    """Processes of their own: peak memory is a fact about a process."""
    sizes = {"images": 8, "others": 1, "updates": 30}
    before = measured(request("teapot", CONTESTANTS[2], **sizes, **SETTINGS), tmp_path)[1]
    ours, after = measured(request("teapot", TUNEQDM, **sizes, **SETTINGS), tmp_path)
    full, _ = measured(
        request("teapot", FULL, **{**sizes, "images": 1, "updates": 3}, **SETTINGS), tmp_path
    )
    held = views(case("teapot")[0], 32)[1].images
    one, two = (subject_values(drawn["subject"], held) for drawn in (before, after))
    assert np.mean(two) > np.mean(one) + 0.03
    growth = [r["memory"]["peak"] - r["memory"]["network"] for r in (ours, full)]
    assert growth[0] < 0.3 * growth[1]
    assert ours["memory"]["prepared"] < 0.5 * ours["memory"]["network"]
