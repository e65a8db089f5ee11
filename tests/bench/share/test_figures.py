"""Figures that no measurement gives, and those that nobody but their sender has computed."""

import resource
import time
from dataclasses import replace

import numpy as np
import pytest

from quantarena.bench.content import bytes_sha256
from quantarena.bench.metrics.fidelity.lpips import weights_sha256
from quantarena.bench.metrics.names import FRECHET, KID, LPIPS, SQNR
from quantarena.bench.metrics.quality.effnet import SHA256
from quantarena.bench.schema import Measurement, Observed, Parity, Row, Status
from quantarena.bench.scores import FLOOR, REPLICATES
from quantarena.bench.share.bounds import own_word
from quantarena.bench.share.layout import MOST_IMAGES
from quantarena.bench.share.manifest import read_manifest, write_manifest
from quantarena.bench.share.merge import merge
from quantarena.bench.share.verify import verify
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.real_images import shipped_label
from quantarena.bench.store import Store, signed_text
from quantarena.bench.workloads import registry
from quantarena.leaderboard.page.page import render

BUDGET = Budget(images=4, batch=2, calibration_images=2, calibration_samples=8)
KEY = Cell("emoji-dit", "rtn", "w4a8", budget=BUDGET).key
FULL = Cell("emoji-dit", "fp", "fp", budget=BUDGET).key
COUNTED = Observed(8.0, 12.8, {"w4a8": 0.8, "fp": 0.2}, 250, 1000, 5, 4.0, 40_000, 100_000, 0, 0)
PARITY = Parity(1e-6, "conv_in", 5, 1e-5)


def found(folder):
    return [str(problem) for problem in verify(folder, share=1.0).problems]


def forged(row, **changes):
    """The row with another LPIPS; its scores file is as it was."""
    better = {"value": 1e-4, "low": 5e-5, "high": 2e-4, **changes}
    figures = (replace(m, **better) if m.name == LPIPS else m for m in row.measurements)
    return replace(row, measurements=tuple(figures))


@pytest.fixture
def score(submission, edit):
    """Change a row's scores file, then the row, and sign everything anew."""

    def score(arrays, change=lambda row: row, *, cell=("rtn", "w4a8"), gone=()):
        key = FULL if cell[0] == "fp" else KEY
        file = submission / "scores" / f"{key}.npz"
        kept = {name: values for name, values in np.load(file).items() if name not in gone}
        np.savez_compressed(file, **kept, **arrays)
        hashed = {"scores_sha256": bytes_sha256(file)}
        return edit(*cell, lambda r: change(replace(r, artefacts=r.artefacts | hashed)))

    return score


# ---- boards and names ----------------------------------------------------------------------


def test_the_board_of_floors_is_no_way_around_the_scores(edit, submission):
    edit("rtn", "w4a8", lambda row: forged(row, board="floor"))
    assert any("which only full precision's row has" in line for line in found(submission))


def test_full_precision_cannot_call_a_metric_a_floor(edit, submission):
    edit("fp", "fp", lambda row: forged(row, board="floor"))
    assert any(f"{LPIPS} is on board 'floor'" in line for line in found(submission))


def test_a_name_stands_once(edit, submission):
    def twice(row):
        shadow = next(m for m in row.measurements if m.name == LPIPS)
        return replace(row, measurements=(*row.measurements, shadow))

    edit("rtn", "w4a8", twice)
    assert any(f"{LPIPS} more than once" in line for line in found(submission))


def test_a_metric_has_the_direction_that_it_has_here(edit, submission):
    edit("rtn", "w4a8", lambda row: forged(row, higher_is_better=True))
    assert any("says that larger is better" in line for line in found(submission))


def test_an_ok_row_says_under_which_settings(edit, submission):
    edit("rtn", "w4a8", lambda row: replace(row, workload={}))
    assert any("says nothing of its workload's settings" in line for line in found(submission))


def test_floors_follow_from_their_scores(score, submission):
    drawn = np.array([1e-4, 2e-4, 3e-4, 4e-4])

    def with_floor(value):
        from quantarena.bench.metrics.bootstrap import mean_interval

        _, low, high = mean_interval(drawn, groups=(0, 1, 2, 3))
        name, known = f"floor/bf16/{LPIPS}", {"reference": "fp, weights rounded to bfloat16"}
        known["extractor_sha256"] = weights_sha256()
        one = Measurement(name, value, low, high, n=4, board="floor", **known)
        return lambda row: replace(row, measurements=(*row.measurements, one))

    score({FLOOR + LPIPS: drawn}, with_floor(2.5e-4), cell=("fp", "fp"))
    assert found(submission) == []
    score({}, lambda row: forged_floor(row, 0.4), cell=("fp", "fp"))
    assert any(f"mean of floor/bf16/{LPIPS}" in line for line in found(submission))


def forged_floor(row, value):
    figures = (
        replace(m, value=value) if m.name == f"floor/bf16/{LPIPS}" else m for m in row.measurements
    )
    return replace(row, measurements=tuple(figures))


# ---- figures beside the pairs of images ------------------------------------------------------


def more(*figures):
    return lambda row: replace(row, measurements=(*named(row, figures), *figures))


def named(row, figures):
    names = {one.name for one in figures}
    return (m for m in row.measurements if m.name not in names)


def sqnr(value):
    return Measurement(
        SQNR, value, value, value, n=4, unit="dB", higher_is_better=True, reference="fp"
    )


def test_a_mean_without_scores_is_refused(edit, submission):
    edit("rtn", "w4a8", more(sqnr(60.0)))
    assert any(f"the scores hold nothing of {SQNR}" in line for line in found(submission))


def kid(value, low=-1.5, high=-0.5):
    known = {"extractor_sha256": SHA256, "reference": shipped_label(registry.describe("emoji-dit"))}
    return Measurement(KID, value, low, high, n=4, unit="x1e-3", board="quality", **known)


def test_a_distance_of_whole_sets_needs_its_resamples(edit, score, submission):
    edit("rtn", "w4a8", more(kid(-1.0)))
    assert any(f"the scores hold nothing of {KID}" in line for line in found(submission))
    drawn = np.random.default_rng(0).normal(-1.0, 0.1, 2000)
    low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975]))
    # an unbiased estimate may be negative
    score({REPLICATES + KID: drawn}, more(kid(-1.0, low, high)))
    assert found(submission) == []
    edit("rtn", "w4a8", more(kid(-1.0, low - 0.1, high)))
    assert any("does not follow from its resamples" in line for line in found(submission))
    edit("rtn", "w4a8", more(kid(-30.0, low, high)))
    assert any("is -30, its resamples are around" in line for line in found(submission))


def test_the_set_of_real_images_is_the_packages(edit, score, submission):
    drawn = np.random.default_rng(0).normal(-1.0, 0.1, 2000)
    ends = (float(end) for end in np.quantile(drawn, [0.025, 0.975]))
    score({REPLICATES + KID: drawn}, more(replace(kid(-1.0, *ends), reference="emoji64 n=9")))
    assert any(f"{KID} is against 'emoji64 n=9'" in line for line in found(submission))


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        (FRECHET, -5.0, "it lies within -0.01 and inf"),
        ("precision-k3/effnet-lite0", 1.5, "it lies within 0 and 1"),
        ("mine/v1", 1.0, "which does not exist"),
    ],
)
def test_values_that_no_metric_has(edit, submission, name, value, line):
    board = "quality" if name != "mine/v1" else "mine"
    higher = name.startswith("precision")
    one = Measurement(name, value, n=4, board=board, higher_is_better=higher)
    edit("rtn", "w4a8", more(one))
    assert any(line in text for text in found(submission))


def test_no_figure_is_of_more_images_than_there_are(edit, submission):
    edit("rtn", "w4a8", more(replace(kid(-1.0), n=50_000)))
    assert any("says 50000 images of 4" in line for line in found(submission))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"packed_bytes": -5}, "-5 bytes of 1000"),
        ({"fp_bytes": 0}, "250 bytes of 0"),
        ({"weight_bits": 1.0}, "1 bits a weight do not follow"),
        ({"act_bits": 0.0}, "0 bits an activation"),
        ({"act_bits": 4.0}, "4 bits an activation do not follow"),
        ({"code_bits": 0.0}, "0 bits a code"),
        ({"bops": -1}, "-1 bit operations"),
        ({"bops": 10**9}, "full precision and branches have"),
        ({"coverage": {"w0a0": 1.0}}, "the widths 'w0a0'"),
        ({"coverage": {"w4a8": 1.8, "fp": -0.8}}, "MACs at w4a8 is 1.8"),
        ({"coverage": {"w4a8": 0.2}}, "add up to 0.2"),
        ({"layers": -1}, "counts -1 layers"),
    ],
)
def test_counts_that_contradict_themselves(edit, submission, change, line):
    edit("rtn", "w4a8", lambda row: replace(row, observed=replace(COUNTED, **change)))
    assert any(line in text for text in found(submission))


def test_a_wide_gate_of_parity_is_none(edit, submission):
    edit("rtn", "w4a8", lambda row: replace(row, parity=Parity(0.5, "x", 5, 1.0)))
    assert any("its parity is 0.5" in line for line in found(submission))


def test_no_row_is_beyond_its_own_gate(edit, submission):
    edit("rtn", "w4a8", lambda row: replace(row, parity=replace(PARITY, max_rel=PARITY.limit)))
    assert found(submission) == []
    edit("rtn", "w4a8", lambda row: replace(row, parity=replace(PARITY, max_rel=2e-5)))
    assert any(
        "its parity is 2e-05, above the limit of 1e-05" in line for line in found(submission)
    )


def test_full_precision_has_one_size(edit, submission):
    full = Observed(32.0, 32.0, {"fp": 1.0}, 1000, 1000, 0, 32.0, 100_000, 100_000, 0, 0)
    edit("fp", "fp", lambda row: replace(row, observed=full))
    edit("rtn", "w4a8", lambda row: replace(row, observed=COUNTED))
    assert found(submission) == []
    larger = replace(COUNTED, packed_bytes=250_000, fp_bytes=1_000_000)
    edit("rtn", "w4a8", lambda row: replace(row, observed=larger))
    assert any("its full precision has 1000000 bytes" in line for line in found(submission))


def test_a_row_without_scores_of_pairs_is_not_verified(submission, score):
    """Nothing would be scored again."""
    score({}, lambda row: replace(row, measurements=()), gone=("psnr", "ssim", LPIPS))
    lines = found(submission)
    assert any(f"the scores hold nothing of {LPIPS}" in line for line in lines)


def test_what_nobody_computes_again_is_said(submission, edit, world, capsys):
    def counted(row):
        return replace(row, observed=COUNTED, parity=PARITY)

    changed = edit("rtn", "w4a8", counted)
    assert own_word(changed) == ("bits, bytes and operations", "parity", "times and memory")
    failed = Row(changed.cell, Status.FAILED, "broken")
    assert own_word(failed) == ()
    merge([submission], world / "out", title="t", command="c")
    planned = Store(world / "out").read_planned()
    page = render(world / "out", grid_title="t", planned=planned.cells, command="c")
    text = page.read_text()
    assert "the sender’s own word in a verified row too" in text
    assert "Its sender's own word: nobody else has computed it" in text
    assert "bits, bytes and operations, parity, times and memory" in text
    from quantarena.bench.cli.main import run

    assert run(["verify", str(submission), "-q"]) == 0
    assert "own word in verified rows too: " in capsys.readouterr().out


# ---- honest rows that look odd -----------------------------------------------------------------


def test_a_row_whose_batch_was_halved_is_honest(edit, submission, world, halved_noise):
    def halved(row):
        timed = replace(row.latency, batch=1)
        facts = {"batch": 1, "noise_sha256": halved_noise}
        return replace(row, workload=row.workload | facts, latency=timed)

    edit("rtn", "w4a8", halved)
    assert found(submission) == []
    merged = merge([world / "one", submission], world / "out", title="t", command="c")
    assert merged.provenance.left_out == ()


# ---- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [0, -1, MOST_IMAGES + 1, 10**10])
@pytest.mark.parametrize("listed", [True, False])
def test_a_budget_of_any_number_of_images_takes_no_memory(submission, resign, images, listed):
    row = next(row for row in Store(submission).rows() if row.key == KEY)
    budget = replace(row.cell.budget, images=images)
    new = replace(row, cell=replace(row.cell, budget=budget), measurements=())
    place = {"images": f"images/{new.key}"} if listed else {}
    new = replace(new, artefacts=place)
    (submission / "rows" / f"{new.key}.json").write_text(signed_text(new))
    resign()
    manifest = read_manifest(submission)
    listing = {**manifest.images, new.key: manifest.images[KEY]}
    write_manifest(submission, replace(manifest, images=listing))
    before, started = peak(), time.monotonic()
    lines = found(submission)
    assert any(f"its budget has {images} images" in line for line in lines)
    assert peak() - before < 100e6
    assert time.monotonic() - started < 30


def test_names_are_counted_before_they_are_made():
    from quantarena.bench.share.manifest import is_numbered

    before = peak()
    assert not is_numbered({"0000.png": ""}, 10**12)
    assert is_numbered({"0000.png": "", "0001.png": ""}, 2)
    assert not is_numbered({"0000.png": "", "0002.png": ""}, 2)
    assert peak() - before < 50e6


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mine/v1", (5,)),
        ("curve:noise-sqnr", (4096, 2048)),
        ("curve:noise-sqnr", (3,)),
        ("replicates:kid/effnet-lite0", (200_000,)),
        ("floor:psnr", (4,)),
        ("x:y", (1,)),
        ("unit:prompt", (5,)),
    ],
)
def test_arrays_that_no_row_has(score, submission, name, shape):
    score({name: np.zeros(shape)}, gone=(name,))
    assert any("the scores hold" in line and KEY in line for line in found(submission))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_one_array_that_a_table_names_many_times_is_read_once_too_often(tmp_path):
    """Every entry of the table would be a copy of the same bytes."""
    import struct

    from quantarena.bench.scores import read_scores

    file = tmp_path / "bomb.npz"
    np.savez(file, x=np.zeros(1 << 18))
    data = file.read_bytes()
    size, start = struct.unpack_from("<2L", data, len(data) - 10)
    table, count = data[start : start + size], 2000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size * count, start, 0)
    file.write_bytes(data[:start] + table * count + end)
    before = peak()
    with pytest.raises(ValueError, match="more than any scores"):
        read_scores(file)
    assert peak() - before < 800e6
