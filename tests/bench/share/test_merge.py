"""Joining results: every cell once, every time kept, nothing taken on trust."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from quantarena.bench.cli.common import opened
from quantarena.bench.errors import UserError
from quantarena.bench.metrics.names import CLIP_SCORE
from quantarena.bench.schema import SELF_REPORTED, Measurement, Row, Status
from quantarena.bench.share.conflicts import Candidate, other_settings
from quantarena.bench.share.examine import Examined
from quantarena.bench.share.merge import merge
from quantarena.bench.share.place import require_unjoined
from quantarena.bench.share.provenance import ELSEWHERE, SOURCE, Standing, read_provenance
from quantarena.bench.share.submit import submit
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.store import Store, signed_text
from quantarena.leaderboard.page.page import render
from quantarena.leaderboard.ranking.read_results import load_rows

BUDGET = Budget(images=4, batch=2, calibration_images=2, calibration_samples=8)
SHARED = Cell("emoji-dit", "rtn", "w4a8", budget=BUDGET)
FULL = Cell("emoji-dit", "fp", "fp", budget=BUDGET)


def joined(*folders, out, **options):
    return merge(folders, out, title="Both", command="quantarena merge", **options)


def change(folder, cell, edit):
    path = folder / "rows" / f"{cell.key}.json"
    row = Store(folder).get(cell.key)
    path.write_text(signed_text(edit(row)))


@pytest.fixture
def both(world):
    joined(world / "one", world / "two", out=world / "out")
    return world / "out"


def test_every_cell_stands_once_and_every_time_is_kept(both, world):
    rows = {row.key: row for row in Store(both).rows()}
    assert len(rows) == 6  # fp; rtn at three widths; ptqd at two
    assert rows[SHARED.key].machine["cpu"] == "First CPU"
    kept = load_rows(both).elsewhere
    assert {(row.key, row.machine["cpu"]) for row in kept} == {
        (SHARED.key, "Second CPU"),
        (FULL.key, "Second CPU"),
    }
    assert all(row.latency for row in kept)
    said = read_provenance(both)
    assert {one.standing for one in said.origins.values()} == {Standing.VERIFIED}
    assert {(c.key, c.kept, c.other) for c in said.conflicts} == {
        (SHARED.key, "one", "two"),
        (FULL.key, "one", "two"),
    }
    assert len(list((both / "images").glob("*/*.png"))) == 6 * 4
    assert Store(both).read_planned().title == "Both"


def test_a_row_keeps_its_images_when_its_results_win(world):
    joined(world / "two", world / "one", out=world / "out")
    row = Store(world / "out").get(SHARED.key)
    assert row.machine["cpu"] == "Second CPU"
    name = f"{SHARED.key}/0000.png"
    ours = (world / "out" / "images" / name).read_bytes()
    assert ours == (world / "two" / "images" / name).read_bytes()


def test_equal_copies_of_a_row_are_one(world):
    shutil.copytree(world / "one", world / "copy")
    done = joined(world / "one", world / "copy", out=world / "out")
    assert (done.rows, done.elsewhere) == (3, 0)


def test_ok_stands_before_what_failed_whoever_is_first(world):
    change(world / "one", SHARED, lambda row: Row(row.cell, Status.FAILED, "broken"))
    joined(world / "one", world / "two", out=world / "out")
    assert Store(world / "out").get(SHARED.key).status is Status.OK
    (conflict,) = [c for c in read_provenance(world / "out").conflicts if c.key == SHARED.key]
    assert (conflict.kept, conflict.why) == ("two", "it is ok")


def test_verified_stands_before_self_reported_whoever_is_first(world):
    def unhashed(row):
        kept = {k: v for k, v in row.artefacts.items() if not k.endswith("sha256")}
        return replace(row, artefacts=kept)

    change(world / "one", SHARED, unhashed)
    joined(world / "one", world / "two", out=world / "out")
    assert Store(world / "out").get(SHARED.key).machine["cpu"] == "Second CPU"
    (other,) = [row for row in load_rows(world / "out").elsewhere if row.key == SHARED.key]
    assert other.warnings[0].startswith(f"{SELF_REPORTED}it states no hash")


def test_a_tampered_row_is_left_out_and_named(world):
    def better(row):
        first = replace(row.measurements[2], value=0.001)
        return replace(row, measurements=(*row.measurements[:2], first, *row.measurements[3:]))

    change(world / "two", SHARED, better)
    done = joined(world / "one", world / "two", out=world / "out")
    (left_out,) = done.provenance.left_out
    assert (left_out.source, left_out.row) == ("two", SHARED.key)
    assert "lpips" in left_out.reason
    assert Store(world / "out").get(SHARED.key).machine["cpu"] == "First CPU"


def foreign(row, digit="1"):
    """Other noise than here, from another kind of processor, where that may well be."""
    facts = row.workload | {"noise_sha256": digit * 64}
    return replace(row, workload=facts, machine=row.machine | {"arch": "other"})


def test_other_settings_do_not_share_a_board(world):
    change(world / "two", SHARED, foreign)
    done = joined(world / "one", world / "two", out=world / "out")
    (left_out,) = done.provenance.left_out
    assert (left_out.source, left_out.row) == ("two", SHARED.key)
    assert "noise_sha256" in left_out.reason


def sent(world, source, name, edit=lambda row: row):
    """A submission of a machine's rows, each changed before."""
    copy = world / f"{name}-results"
    shutil.copytree(world / source, copy)
    for row in Store(copy).rows():
        change(copy, row.cell, edit)
    submit(copy, world / name, name=name, share=1.0)
    return world / name


def left_out(world, *folders):
    """Names of the sources that have lost rows; each has then lost all of them."""
    lost = joined(*folders, out=world / "out").provenance.left_out
    sources = {one.source for one in lost}
    assert len(lost) == sum(len(Store(world / source).rows()) for source in sources)
    return sources


def test_submissions_never_set_the_board_of_ones_own_rows(world):
    for row in Store(world / "one").rows():
        change(world / "one", row.cell, foreign)  # self-reported, and theirs are verified
    assert left_out(world, sent(world, "two", "theirs"), world / "one") == {"theirs"}


def test_verified_rows_set_the_board_before_self_reported_ones(world):
    theirs, honest = sent(world, "two", "theirs", foreign), sent(world, "one", "honest")
    assert left_out(world, theirs, honest) == {"theirs"}


def test_what_most_sources_say_sets_the_board(world):
    """All are self-reported, since nobody here can draw the noise of their processors."""
    odd = sent(world, "two", "odd", lambda row: foreign(row, "2"))
    first, second = sent(world, "one", "first", foreign), sent(world, "one", "second", foreign)
    assert left_out(world, odd, first, second) == {"odd"}
    assert left_out(world, odd, first) == {"first"}  # nothing but the order is left


def test_a_metric_that_one_machine_lacks_puts_no_row_off(world):
    row = Store(world / "two").get(SHARED.key)

    def clip(place, value, **others):
        one = Measurement(CLIP_SCORE, value, board="quality", higher_is_better=True, **others)
        found = Examined(replace(row, measurements=(*row.measurements, one)), str(place))
        return Candidate(str(place), place, found)

    bare = clip(0, None, reason="set QUANTARENA_CLIP")
    full = clip(1, 20.0, extractor_sha256="a" * 64, reference="prompts")
    other = clip(2, 20.0, extractor_sha256="b" * 64, reference="prompts")
    assert other_settings([bare, full]) == {}
    assert list(other_settings([bare, full, other])) == [2]


def test_rows_of_a_submission_name_it_and_share_no_clock(world, submission):
    first = world / "one"
    for path in sorted((first / "rows").glob("*.json")):  # as if both had one kind of machine
        row = Store(first).get(path.stem)
        machine = {**row.machine, "cpu": "Second CPU", "cores": 8}
        path.write_text(signed_text(replace(row, machine=machine)))
    joined(first, submission, out=world / "out")
    rows = Store(world / "out").rows()
    named = {row.machine.get(SOURCE) for row in rows}
    assert named == {None, "sent"}
    text = (render_page(world / "out")).read_text()
    assert "Second CPU, 8 cores (of sent)" in text
    assert "self-reported times" in text


def test_a_broken_submission_is_refused_as_a_whole(world, submission):
    (submission / "scores" / f"{SHARED.key}.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="is no intact submission: 1 problem"):
        joined(world / "one", submission, out=world / "out")
    assert not (world / "out").exists()


def render_page(folder):
    planned = Store(folder).read_planned()
    return render(folder, grid_title="Both", planned=planned.cells, command="merge")


def test_the_page_has_a_column_for_each_machine(both):
    text = render_page(both).read_text()
    assert "Speed by machine" in text
    head = text.split("Speed by machine")[1].split("</thead>")[0]
    # the machine that timed most rows, wherever they stand, is that of the other tables
    assert head.index("Second CPU, 8 cores") < head.index("First CPU, 2 cores")
    assert head.count("the times of the tables and plots above") == 1
    body = text.split("Speed by machine")[1].split("</table>")[0]
    row = next(part for part in body.split("<tr ") if "RTN" in part and ">w4a8<" in part)
    assert "1.50×" in row
    assert "0.80×" in row
    only = next(part for part in body.split("<tr ") if "PTQD" in part and ">w4a4<" in part)
    assert only.count("0.80×") == 1
    assert "–</span></td>" in only
    assert "Rows of 2 results were joined" in text


def test_the_page_marks_what_is_self_reported_in_words(world, submission, edit):
    edit("ptqd", "w4a4", lambda row: replace(row, method=row.method | {"origin": "plugin x.py"}))
    joined(world / "one", submission, out=world / "out")
    text = render_page(world / "out").read_text()
    assert text.count('">self-reported</small>') >= 2  # in the table and in the record
    assert "a plug-in&#39;s of the same name" in text


def test_a_name_of_html_stays_text(world, submission, edit):
    mean = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'

    def hostile(row):
        return replace(
            row,
            method=row.method | {"title": mean, "summary": mean},
            machine=row.machine | {"cpu": mean},
            warnings=(mean,),
        )

    edit("rtn", "w4a8", hostile)
    joined(submission, out=world / "out")
    text = render_page(world / "out").read_text()
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert" in text


def test_nothing_self_reported_is_recommended(world, submission, edit):
    """Without a check the sender alone would choose the headline."""

    def unchecked(row):
        return replace(row, method=row.method | {"origin": "plugin x.py"})

    for method, bits in (("rtn", "w4a8"), ("rtn", "w4a4"), ("ptqd", "w4a8"), ("ptqd", "w4a4")):
        edit(method, bits, unchecked)
    joined(submission, out=world / "out")
    text = render_page(world / "out").read_text()
    assert "Rows that are self-reported are never recommended" in text


@pytest.mark.parametrize("place", ["one", "one/rows", "."])
def test_the_new_folder_never_covers_a_source(world, place):
    with pytest.raises(UserError, match="lie in one another"):
        joined(world / "one", world / "two", out=world / place)


def test_places_that_are_none(world, both):
    with pytest.raises(UserError, match="holds no results"):
        joined(world / "absent", out=world / "new")
    with pytest.raises(UserError, match="is named twice"):
        joined(world / "one", world / "one" / "..", world / "one", out=world / "new")
    with pytest.raises(UserError, match="is joined already"):
        joined(both, world / "one", out=world / "new")
    (world / "mine").mkdir()
    (world / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="holds something else"):
        joined(world / "one", out=world / "mine")


def test_merging_again_replaces_the_folder_as_a_whole(both, world):
    (both / "rows" / ELSEWHERE / "0123456789abcdef.1.json").write_text("{}")
    (both / ".outlines.json").write_text("{}")
    joined(world / "one", out=both)
    assert {row.key for row in Store(both).rows()} == {
        row.key for row in Store(world / "one").rows()
    }
    assert [path.name for path in world.iterdir() if path.name.startswith(".")] == []


KILLED = """
import os, signal, sys
from pathlib import Path
from quantarena.bench.share.merge import merge
one, out = Path(sys.argv[1]), Path(sys.argv[2])
rename = os.replace
def replace(source, target):
    if Path(target) == out and Path(source).suffix == ".work":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.replace = replace
merge([one], out, title="Killed", command="c")
"""


@pytest.mark.parametrize("verb", ["merge", "show", "run"])
def test_a_merge_that_was_killed_between_its_renames_is_finished(both, world, verb):
    command = [sys.executable, "-c", KILLED, str(world / "one"), str(both)]
    assert subprocess.run(command).returncode == -9
    assert not both.exists()
    if verb == "merge":
        joined(world / "one", world / "two", out=both)
    elif verb == "show":
        assert opened(world, "out").read_planned().title == "Killed"
    else:
        with pytest.raises(UserError, match="joins results of several folders"):
            require_unjoined(both)
    assert read_provenance(both).sources[0].name == "one"
    assert [path.name for path in world.iterdir() if path.name.startswith(".out")] == []


def test_links_in_results_are_not_followed(world, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    file = world / "two" / "images" / SHARED.key / "0000.png"
    file.unlink()
    file.symlink_to(secret)
    done = joined(world / "two", out=world / "out")
    assert [one.row for one in done.provenance.left_out] == [SHARED.key]
    assert not any(p.read_bytes() == b"secret" for p in (world / "out").rglob("*.png"))


def test_the_verbs(world, submission, capsys):
    from quantarena.bench.cli.main import run

    assert run(["verify", str(submission), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["passed"] is True
    assert {row["standing"] for row in said["rows"]} == {"verified"}
    out = world / "results" / "all"
    assert run(["merge", str(world / "one"), str(submission), "-o", str(out), "-q"]) == 0
    assert "verified" in capsys.readouterr().out
    assert (out / "leaderboard.html").is_file()
    assert run(["rank", "all", "--results", str(world / "results")]) == 0
    assert run(["render", "all", "--results", str(world / "results")]) == 0
    assert run(["submit", "all", "--results", str(world / "results"), "-o", "x"]) == 2
    assert "joins results of several machines" in capsys.readouterr().err
    (submission / "scores" / f"{SHARED.key}.npz").write_bytes(b"PK")
    assert run(["verify", str(submission)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"scores/{SHARED.key}.npz: it has 2 bytes")
    assert lines[-1] == "refused"
    assert run(["merge", str(world / "one"), str(submission), "-o", str(out), "-q"]) == 2
    assert run(["verify", str(world / "absent")]) == 2


def test_a_run_behind_a_url_is_a_source(world, tmp_path, monkeypatch, capsys):
    """With its images, which are checked as those of a folder are."""
    from quantarena.bench.cli.main import run
    from quantarena.bench.storage.remote import mirror
    from quantarena.bench.storage.sync import sync_of

    url = f"file://{tmp_path}/store [v2]"
    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "sender"))
    shutil.copytree(world / "one", mirror(url) / "one")
    sync_of(mirror(url) / "one").push_changed()
    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "reader"))
    command = ["merge", f"{url}/one", str(world / "two"), "-o", str(world / "all"), "--json"]
    assert run(command) == 0, capsys.readouterr().err
    said = json.loads(capsys.readouterr().out)
    assert [source["name"] for source in said["sources"]] == ["one", "two"]
    assert said["sources"][0]["standings"] == {"verified": 3, "self-reported": 0, "refused": 0}
    assert f"'{url}/one'" in opened(world, "all").read_planned().command
    assert run(["merge", f"{url}/one", f"{url}/one", "-o", str(world / "all")]) == 2
    assert f"{url}/one is named twice" in capsys.readouterr().err
