"""Work folders of killed processes are swept; those of living ones are not."""

import os
import subprocess
import sys
import time

import pytest

from quantarena.bench.cache import StageCache
from quantarena.bench.files import OLD_SECONDS, sweep, sweep_drafts, work_folder

HOLD = """
import sys, time
from pathlib import Path
from quantarena.bench.files import work_folder
with work_folder(Path(sys.argv[1]), "quantize") as folder:
    (folder / "big").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


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
