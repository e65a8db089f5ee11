"""Work folders of killed processes are swept; those of living ones are not."""

import os
import subprocess
import sys
import time

import pytest

from quantarena.bench.cache import StageCache
from quantarena.bench.files import (
    OLD_SECONDS,
    draft_of,
    finish_replacing,
    put_in_place,
    sweep,
    sweep_drafts,
    work_folder,
)

HOLD = """
import sys, time
from pathlib import Path
from quantarena.bench.files import work_folder
with work_folder(Path(sys.argv[1]), "quantize") as folder:
    (folder / "big").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""

REPLACE = """
import os, shutil, signal, sys
from pathlib import Path
from quantarena.bench.files import draft_of, put_in_place
folder, moment = Path(sys.argv[1]), sys.argv[2]
rename, renamed = os.replace, []
def die(*given, **rest):
    os.kill(os.getpid(), signal.SIGKILL)
def replace(source, target):
    if moment == f"rename {len(renamed)}":
        die()
    renamed.append(target)
    rename(source, target)
with draft_of(folder) as work:
    (work / "row").write_text("new")
    os.replace = replace
    if moment == "deletion":
        shutil.rmtree = die
    put_in_place(work, folder)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def replace_until_killed(folder, moment):
    """Replace a folder that holds an old row; the process dies at that moment."""
    folder.mkdir(exist_ok=True)
    (folder / "row").write_text("old")
    killed = subprocess.run([sys.executable, "-c", REPLACE, str(folder), moment])
    assert killed.returncode == -9
    assert folder.exists() == (moment != "rename 1")


@pytest.fixture
def owner(tmp_path):
    """Another process that works in a folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_living_owner_keeps_its_folder(owner, tmp_path):
    before = names(tmp_path)
    assert len(before) == 2
    assert before[1].startswith(".quantize-")
    assert sweep(tmp_path) == 0
    assert names(tmp_path) == before


def test_a_killed_owner_loses_it(owner, tmp_path):
    owner.kill()
    owner.wait()
    with work_folder(tmp_path, "quantize") as mine:
        assert sweep(tmp_path, "another") == 0
        assert sweep(tmp_path) == 1
        assert mine.is_dir()
    assert names(tmp_path) == []


def test_nothing_else_is_touched(tmp_path):
    for name in (".lock", "row.json", "stage-key"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".quantize-own").mkdir()
    assert sweep(tmp_path) == sweep(tmp_path / "missing") == 0
    assert names(tmp_path) == [".lock", ".quantize-own", "row.json", "stage-key"]


def test_a_renamed_folder_stays(tmp_path):
    with work_folder(tmp_path, "a") as folder:
        os.replace(folder, tmp_path / "final")
    assert names(tmp_path) == ["final"]


def test_the_cache_leaves_no_lock(tmp_path):
    StageCache(tmp_path).get("stage", "key", lambda folder: None)
    assert names(tmp_path) == ["stage-key"]


def test_drafts(tmp_path):
    for name in (".a.json.x1.tmp", ".b.npz", "c.npz"):
        (tmp_path / name).write_text("x")
    assert sweep_drafts(tmp_path) == 0
    old = time.time() - OLD_SECONDS - 60
    os.utime(tmp_path / ".b.npz", (old, old))
    assert sweep_drafts(tmp_path) == 1
    assert sweep_drafts(tmp_path, now=True) == 1
    assert names(tmp_path) == ["c.npz"]


@pytest.mark.parametrize(
    ("moment", "row"), [("rename 0", "old"), ("rename 1", "new"), ("deletion", "new")]
)
@pytest.mark.parametrize("opens", [finish_replacing, lambda folder: sweep(folder.parent)])
def test_a_kill_in_mid_replacement_is_put_right_by_whoever_comes_next(tmp_path, moment, row, opens):
    folder = tmp_path / "both-of.us"
    replace_until_killed(folder, moment)
    opens(folder)
    assert (folder / "row").read_text() == row
    sweep(tmp_path)
    assert names(tmp_path) == ["both-of.us"]


@pytest.mark.parametrize("name", ["x" * 240, "ü" * 120, "[odd] *?"])
def test_names_that_are_cut_off_or_odd_come_back_whole(tmp_path, name):
    folder = tmp_path / name
    replace_until_killed(folder, "rename 1")
    finish_replacing(folder)
    assert (folder / "row").read_text() == "new"
    assert names(tmp_path) == [name]


def test_a_folder_is_put_right_through_a_link_to_it(tmp_path):
    """What writes a folder goes through its links, and so must what reads it."""
    folder, link = tmp_path / "kept" / "real", tmp_path / "link"
    folder.parent.mkdir()
    link.symlink_to(folder)
    replace_until_killed(folder, "rename 1")
    finish_replacing(link)
    assert (link / "row").read_text() == "new"


def test_an_empty_folder_of_the_same_name_costs_nothing(tmp_path):
    folder = tmp_path / "packed"
    replace_until_killed(folder, "rename 1")
    folder.mkdir()
    finish_replacing(folder)
    assert (folder / "row").read_text() == "new"
    assert names(tmp_path) == ["packed"]


def test_both_folders_wait_where_somebody_took_the_name(tmp_path):
    folder = tmp_path / "packed"
    replace_until_killed(folder, "rename 1")
    folder.mkdir()
    (folder / "row").write_text("somebody's")
    sweep(tmp_path)
    assert (folder / "row").read_text() == "somebody's"
    assert sorted(path.read_text() for path in tmp_path.glob(".*/row")) == ["new", "old"]
    (folder / "row").rename(tmp_path / "moved")
    finish_replacing(folder)
    assert (folder / "row").read_text() == "new"
    assert names(tmp_path) == ["moved", "packed"]


def test_drafts_of_killed_processes_go_with_the_next_one(tmp_path):
    folder = tmp_path / "joined"
    replace_until_killed(folder, "rename 0")
    assert len(names(tmp_path)) == 3
    with draft_of(folder):
        pass
    assert names(tmp_path) == ["joined"]


def test_an_earlier_folder_comes_back_where_the_new_one_is_gone(tmp_path):
    """A version that swept the new folder and its lock left the earlier one without a name."""
    (tmp_path / ".both-abcd1234.before").mkdir()
    finish_replacing(tmp_path / "both")
    assert names(tmp_path) == ["both"]


def test_a_living_process_is_not_disturbed_in_its_replacement(owner, tmp_path):
    lock = min(tmp_path.iterdir())
    lock.with_suffix(".before").mkdir()
    before = names(tmp_path)
    finish_replacing(tmp_path / "quantize")
    assert names(tmp_path) == before


def test_a_rename_that_fails_leaves_the_earlier_folder(tmp_path, monkeypatch):
    folder, rename = tmp_path / "both", os.replace
    folder.mkdir()
    (folder / "row").write_text("old")

    def fails(source, target):
        if str(source).endswith(".work"):
            raise OSError("the disk is gone")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="the disk is gone"), work_folder(tmp_path, "both") as work:
        put_in_place(work, folder)
    assert (folder / "row").read_text() == "old"
    assert names(tmp_path) == ["both"]
