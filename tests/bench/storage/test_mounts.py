from pathlib import Path

import pytest

from quantarena.bench.storage import mounts
from quantarena.bench.storage.mounts import local_locks

TABLE = r"""proc /proc proc rw 0 0
/dev/vda / ext4 rw,relatime 0 0
mgs@tcp:/one /lustre lustre rw,localflock,lazystatfs 0 0
mgs@tcp:/two /lustre/good lustre rw,flock,lazystatfs 0 0
mgs@tcp:/three /lustre\040of\040mine lustre rw,noflock 0 0
nas:/old /nfs nfs rw,vers=3,nolock,local_lock=all,addr=10.0.0.1 0 0
nas:/new /home nfs4 rw,vers=4.2,local_lock=none 0 0
nas:/flock /flock nfs rw,vers=3,local_lock=flock 0 0
/dev/vdb /over ext4 rw 0 0
mgs@tcp:/four /over lustre rw,localflock 0 0
/dev/vdb /odd ext4 rw,nolock 0 0
damaged
"""


@pytest.fixture
def table(tmp_path):
    (tmp_path / "mounts").write_text(TABLE)
    return tmp_path / "mounts"


@pytest.mark.parametrize(
    ("folder", "found"),
    [
        ("/results", ""),
        ("/lustre/results", "lustre with localflock"),
        ("/lustre", "lustre with localflock"),
        ("/lustre/good/results", ""),
        ("/lustre of mine/results", "lustre with noflock"),
        ("/lustrexyz/results", ""),
        ("/nfs/a/b", "nfs with nolock"),
        ("/home/me/results", ""),
        ("/flock/results", "nfs with local_lock=flock"),
        ("/over/results", "lustre with localflock"),
        ("/odd/results", ""),
    ],
)
def test_locks_that_do_not_leave_their_machine(folder, found, table):
    assert local_locks(Path(folder), table) == found


def test_without_a_table_nothing_is_said(tmp_path):
    assert local_locks(tmp_path, tmp_path / "none") == ""


def test_a_run_on_such_a_folder_warns_in_one_line(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mounts")
    code, _, err = bench("run", "smoke")
    assert code == 0
    assert "lustre" not in err
    (tmp_path / "mounts").write_text(f"mgs@tcp:/one {tmp_path} lustre rw,localflock 0 0\n")
    code, _, err = bench("run", "smoke")
    assert code == 0
    lines = [line for line in err.splitlines() if "lustre with localflock" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: ")
