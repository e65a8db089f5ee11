"""A submission is verified, and each way to cheat that we could think of is found."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from quantarena.bench.content import bytes_sha256, listing_sha256
from quantarena.bench.errors import UserError
from quantarena.bench.schema import Status
from quantarena.bench.share import layout
from quantarena.bench.share.layout import sampled
from quantarena.bench.share.provenance import Standing
from quantarena.bench.share.submit import submit
from quantarena.bench.share.verify import verify
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.store import Store

CELL = Cell(
    "emoji-dit",
    "rtn",
    "w4a8",
    budget=Budget(images=4, batch=2, calibration_images=2, calibration_samples=8),
)
KEY = CELL.key
LPIPS = "lpips/alex-v0.1"


def found(folder, share=1.0):
    """The problems of a submission as lines."""
    return [str(problem) for problem in verify(folder, share=share).problems]


def test_an_honest_submission_is_verified(submission):
    report = verify(submission, share=1.0)
    assert report.problems == ()
    assert {one.standing for one in report.rows} == {Standing.VERIFIED}
    assert all(one.rescored == (0, 1, 2, 3) for one in report.rows)
    assert report.manifest.machines[0]["cpu"] == "Second CPU"


def test_a_sample_is_enough_and_one_image_a_row_is_the_least(world):
    done = submit(world / "two", world / "few", name="few", share=0.01)
    report = verify(world / "few")
    assert report.problems == ()
    assert report.standings["verified"] == len(report.rows) == 5
    assert all(len(one.rescored) == 1 for one in report.rows)
    assert done.images < 5 * 4
    # who asks for more than was sent learns that it is not here
    asked = verify(world / "few", share=1.0)
    assert asked.problems == ()
    assert asked.standings["self-reported"] > 0


def test_the_sample_is_chosen_by_all_images():
    assert sampled("a", 1000, 0.01) != sampled("b", 1000, 0.01)
    assert len(sampled("a", 1000, 0.01)) == 10
    assert len(sampled("a", 3, 0.0)) == 1
    assert sampled("a", 5, 1.0) == (0, 1, 2, 3, 4)


# ---- rows that lie -------------------------------------------------------------------------


def test_a_tampered_score_in_the_row(edit, submission):
    def better(row):
        figures = tuple(
            replace(m, value=m.value / 2, low=m.low / 2, high=m.high / 2) if m.name == LPIPS else m
            for m in row.measurements
        )
        return replace(row, measurements=figures)

    edit("rtn", "w4a8", better)
    lines = found(submission)
    assert any(KEY in line and f"mean of {LPIPS}" in line for line in lines)


def test_scores_and_row_tampered_together(edit, submission):
    """The row follows from its scores file, and the scores do not follow from the images."""
    file = submission / "scores" / f"{KEY}.npz"
    arrays = dict(np.load(file))
    arrays[LPIPS] = arrays[LPIPS] / 2
    np.savez_compressed(file, **arrays)

    def better(row):
        figures = tuple(
            replace(m, value=m.value / 2, low=m.low / 2, high=m.high / 2) if m.name == LPIPS else m
            for m in row.measurements
        )
        hashes = row.artefacts | {"scores_sha256": bytes_sha256(file)}
        return replace(row, measurements=figures, artefacts=hashes)

    edit("rtn", "w4a8", better)
    lines = found(submission)
    assert len(lines) == 4
    assert all(f"{LPIPS} of image" in line and "by its file" in line for line in lines)
    (one,) = found(submission, share=0.01)
    assert f"{LPIPS} of image" in one


def test_a_tampered_image(submission, resign):
    file = submission / "images" / KEY / "0002.png"
    size = file.stat().st_size
    Image.new("RGB", (32, 32), "red").save(file)
    now = file.stat().st_size
    assert now != size
    assert found(submission) == [
        f"images/{KEY}/0002.png: it has {now} bytes, the manifest says {size}"
    ]
    file.write_bytes(file.read_bytes() + bytes(size - now))
    (line,) = found(submission)
    assert "its sha256 is" in line
    resign()
    (line,) = found(submission)
    assert "its images are not those that it states the hash of" in line


def test_a_tampered_image_with_every_hash_anew(submission, resign, edit):
    Image.new("RGB", (32, 32), "red").save(submission / "images" / KEY / "0002.png")
    listing = resign()[KEY]
    hashed = {"images_sha256": listing_sha256(listing)}
    edit("rtn", "w4a8", lambda row: replace(row, artefacts=row.artefacts | hashed))
    assert any(f"{LPIPS} of image 2" in line for line in found(submission))


def test_a_wrong_key(submission, resign):
    path = submission / "rows" / f"{KEY}.json"
    other = "0123456789abcdef"
    path.rename(path.with_name(f"{other}.json"))
    resign()
    assert any(f"it holds the row {KEY}" in line for line in found(submission))


def test_a_cell_that_was_edited(submission, resign):
    path = submission / "rows" / f"{KEY}.json"
    path.write_text(path.read_text().replace('"w4a8"', '"w2a2"'))
    resign()
    assert any("digest does not fit" in line for line in found(submission))


def test_settings_of_another_workload(edit, submission):
    edit("rtn", "w4a8", lambda row: replace(row, workload=row.workload | {"steps": 500}))
    assert any("its steps is 500, emoji-dit has" in line for line in found(submission))


def test_another_model_under_the_same_name(edit, submission):
    edit("rtn", "w4a8", lambda row: replace(row, workload=row.workload | {"model_sha256": "f"}))
    assert any("its model_sha256 is f" in line for line in found(submission))


def test_a_name_that_fills_a_page(edit, submission):
    edit("rtn", "w4a8", lambda row: replace(row, machine=row.machine | {"cpu": "x" * 10_000}))
    assert any("the name of its processor has more than 300" in line for line in found(submission))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"ratio": 9.0, "ratio_high": 9.5}, "speed-up 9 does not follow"),
        ({"ratio_low": 1.4, "ratio_high": 1.3}, "is not within"),
        ({"step_ms": -1.0}, "is not above 0"),
    ],
)
def test_times_that_no_clock_gives(edit, submission, change, line):
    edit("rtn", "w4a8", lambda row: replace(row, latency=replace(row.latency, **change)))
    assert any(line in text for text in found(submission))


def test_nan_is_no_number(submission, resign):
    path = submission / "rows" / f"{KEY}.json"
    document = json.loads(path.read_text())
    document["measurements"][0]["value"] = float("nan")
    path.write_text(json.dumps(document))
    resign()
    assert any("NaN" in line for line in found(submission))


def test_nan_in_the_scores(submission, edit):
    file = submission / "scores" / f"{KEY}.npz"
    arrays = dict(np.load(file))
    arrays[LPIPS][1] = np.nan
    np.savez_compressed(file, **arrays)
    hashed = {"scores_sha256": bytes_sha256(file)}
    edit("rtn", "w4a8", lambda row: replace(row, artefacts=row.artefacts | hashed))
    assert any(f"scores of {LPIPS} are not all finite" in line for line in found(submission))


@pytest.mark.parametrize("version", [0, 7, 99, "6", None])
def test_other_schema_versions(submission, resign, version):
    path = submission / "rows" / f"{KEY}.json"
    document = json.loads(path.read_text())
    document["schema_version"] = version
    document.pop("digest")
    from quantarena.bench.store import digest

    document["digest"] = digest(document)
    path.write_text(json.dumps(document))
    resign()
    assert any("schema version" in line for line in found(submission))


@pytest.mark.parametrize(
    "place", ["../../../etc", "/etc", "images/../../secret", "scores", "images/0123456789abcdef"]
)
def test_artefacts_that_lie_elsewhere(edit, submission, place):
    edit("rtn", "w4a8", lambda row: replace(row, artefacts=row.artefacts | {"images": place}))
    assert any("its images are said to be in" in line for line in found(submission))


def test_what_nobody_here_knows_is_self_reported(submission, edit, resign):
    edit(
        "rtn",
        "w4a8",
        lambda row: replace(row, method=row.method | {"origin": "package theirs 1.0"}),
    )
    report = verify(submission, share=1.0)
    assert report.problems == ()
    (one,) = [one for one in report.rows if one.row.key == KEY]
    assert one.standing is Standing.SELF_REPORTED
    assert "a plug-in's of the same name" in one.doubts[0]


@pytest.mark.parametrize("form", ["{}", "emoji-t2i?lora={}", "emoji-t2i?images={}"])
def test_a_workload_is_never_looked_up_on_this_machine(form, submission, edit, tmp_path):
    """A stranger's row must not make us read a folder of ours."""
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "style.safetensors").write_text("")
    place = form.format(tmp_path)

    def elsewhere(row):
        return replace(row, cell=replace(row.cell, workload=place))

    key = replace(CELL, workload=place).key
    changed = elsewhere(next(r for r in Store(submission).rows() if r.key == KEY))
    for kind, ending in (("rows", ".json"), ("scores", ".npz"), ("images", "")):
        os.rename(submission / kind / f"{KEY}{ending}", submission / kind / f"{key}{ending}")
    from quantarena.bench.store import signed_text

    names = {"images": f"images/{key}", "scores": f"scores/{key}.npz"}
    changed = replace(changed, artefacts=changed.artefacts | names)
    (submission / "rows" / f"{key}.json").write_text(signed_text(changed))
    document = json.loads((submission / "manifest.json").read_text())
    document["images"][key] = document["images"].pop(KEY)
    (submission / "manifest.json").write_text(json.dumps(document))
    edit("rtn", "w4a4", lambda row: row)
    report = verify(submission, share=1.0)
    (one,) = [one for one in report.rows if one.row.key == key]
    assert any("is not one that ships" in doubt for doubt in one.doubts)


def test_a_failed_row_of_a_stranger_is_self_reported(submission, edit):
    edit("rtn", "w4a8", lambda row: replace(row, status=Status.FAILED, reason="it never works"))
    report = verify(submission, share=1.0)
    (one,) = [one for one in report.rows if one.row.key == KEY]
    assert one.standing is Standing.SELF_REPORTED


# ---- folders that are none -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../evil.json", "/etc/passwd", "rows/../../evil.json", "C:\\evil", "rows\\x.json"]
)
def test_path_traversal_in_the_manifest(submission, manifest, name):
    entry = {"sha256": "0" * 64, "bytes": 3}
    manifest(lambda document: document["files"].update({name: entry}))
    lines = found(submission)
    assert len(lines) == 1
    assert "leads out of the folder" in lines[0] or "belongs here" in lines[0]


def test_missing_and_additional_files(submission):
    (submission / "scores" / f"{KEY}.npz").unlink()
    (submission / "rows" / "run.sh").write_text("true")
    (submission / "images" / KEY / "0009.png").write_bytes(b"x")
    (submission / "more").mkdir()
    assert sorted(found(submission)) == [
        f"images/{KEY}/0009.png: the manifest does not name it",
        "more: no folder of that name belongs here",
        "rows/run.sh: no file of that name belongs here",
        f"scores/{KEY}.npz: the manifest names it, it is not here",
    ]


def test_links_and_pipes_are_never_followed(submission, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    file = submission / "images" / KEY / "0001.png"
    file.unlink()
    file.symlink_to(secret)
    os.mkfifo(submission / "scores" / "0123456789abcdef.npz")
    (submission / "images" / "0123456789abcdef").symlink_to(tmp_path, target_is_directory=True)
    lines = found(submission)
    assert f"images/{KEY}/0001.png: it is a link: only regular files are taken" in lines
    assert "scores/0123456789abcdef.npz: it is no regular file" in lines
    assert any(line.startswith("images/0123456789abcdef: it is a link") for line in lines)


def test_a_link_in_the_place_of_the_folder(submission, tmp_path):
    (tmp_path / "link").symlink_to(submission)
    with pytest.raises(UserError, match="is a link"):
        verify(tmp_path / "link")


def test_huge_files_are_not_read(submission, monkeypatch):
    path = submission / "rows" / f"{KEY}.json"
    with open(path, "r+b") as stream:
        stream.truncate(layout.ROW_BYTES + 1)  # a hole: it takes no disk
    read = []
    monkeypatch.setattr("quantarena.bench.share.verify.bytes_sha256", read.append)
    lines = found(submission)
    assert any("at most" in line and KEY in line for line in lines)
    assert read == []


def test_a_huge_picture(submission, edit, resign):
    """A small file may claim any size."""
    Image.new("1", (9_000, 9_000)).save(submission / "images" / KEY / "0000.png")
    listing = resign()[KEY]
    hashed = {"images_sha256": listing_sha256(listing)}
    edit("rtn", "w4a8", lambda row: replace(row, artefacts=row.artefacts | hashed))
    assert any("too large to score" in line for line in found(submission))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "not JSON"),
        ("[]", "is no manifest"),
        ('{"format": "quantarena-submission", "version": 2}', "version 2"),
        ('{"format": "quantarena-submission", "version": 1}', "missing field"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_manifest_that_is_none(submission, text, line):
    (submission / "manifest.json").write_text(text)
    (only,) = found(submission)
    assert line in only


def test_a_manifest_that_is_absent_or_a_link(submission, tmp_path):
    path = submission / "manifest.json"
    path.rename(tmp_path / "kept.json")
    assert any("there is no such file" in line for line in found(submission))
    path.symlink_to(tmp_path / "kept.json")
    assert any("it is a link" in line for line in found(submission))


def test_names_cannot_write_to_a_terminal(submission):
    (submission / "rows" / "a\n\x1b[31m.json").write_text("{}")
    (line,) = found(submission)
    assert "\n" not in line
    assert "\x1b" not in line


def test_submit_refuses(world, tmp_path):
    with pytest.raises(UserError, match="up to 64 letters"):
        submit(world / "two", tmp_path / "out", name="../up", share=1.0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="holds something else"):
        submit(world / "two", tmp_path / "mine", name="x", share=1.0)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"
    (world / "two" / "rows" / f"{KEY}.json").write_text("{}")
    with pytest.raises(UserError, match="is no intact row"):
        submit(world / "two", tmp_path / "out", name="x", share=1.0)


def test_submit_again_replaces_its_own_folder(world):
    for _ in range(2):
        submit(world / "two", world / "again", name="again", share=1.0)
    assert verify(world / "again").passed
    assert [p.name for p in world.iterdir() if p.name.startswith(".")] == []
