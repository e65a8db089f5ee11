"""Leases on a folder and on an object store: one holder at a time, whatever dies or sleeps."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fsspec
import pytest

from quantarena.bench.errors import UserError
from quantarena.bench.storage import owner as owner_module
from quantarena.bench.storage import shelves
from quantarena.bench.storage.leases import VARIABLE, Leases, lease_seconds
from quantarena.bench.storage.owner import this_process
from quantarena.bench.storage.shelves import FolderShelf, ObjectShelf


@pytest.fixture(params=["folder", "memory"])
def shelf(request, tmp_path):
    """Shelves of each kind that needs no server; each call is a new one on the same records."""
    if request.param == "folder":
        return lambda: FolderShelf(tmp_path / "leases")
    system = fsspec.filesystem("memory")
    root = f"/leases-{os.getpid()}-{time.monotonic_ns()}"
    return lambda: ObjectShelf(system, root)


def foreign(shelf, name, **changes):
    """Put the lease of a process that is not known here."""
    owner = replace(this_process(), boot="of another machine", host="elsewhere", **changes)
    assert shelf.create(name, json.dumps({"owner": owner.to_dict()}).encode())
    return owner


def test_one_holder_at_a_time(shelf):
    one, other = Leases(shelf()), Leases(shelf())
    lease = one.take("cell-1")
    assert lease is not None
    assert other.take("cell-1") is None
    assert one.take("cell-1") is None  # not twice by one process either
    assert other.take("cell-2") is not None
    assert other.holder("cell-1").pid == os.getpid()
    one.release(lease)
    assert other.holder("cell-1") is None
    assert other.take("cell-1") is not None
    other.close()
    assert shelf().names() == []


def test_of_many_at_once_one_gets_it(shelf):
    barrier = threading.Barrier(8)

    def take(_):
        leases = Leases(shelf())
        barrier.wait()
        return leases.take("cell")

    with ThreadPoolExecutor(8) as pool:
        found = [lease for lease in pool.map(take, range(8)) if lease]
    assert len(found) == 1


def test_a_holder_that_is_silent_is_dead_after_the_time_of_a_lease_by_our_own_clock(shelf):
    foreign(shelf(), "cell")
    leases = Leases(shelf(), seconds=0.6)
    assert leases.take("cell") is None
    time.sleep(0.3)
    assert leases.take("cell") is None
    time.sleep(0.5)
    lease = leases.take("cell")
    assert lease is not None
    assert leases.ours(lease)
    assert shelf().names() == ["cell"]  # the heir's record is gone
    leases.close()


def test_a_watcher_with_less_patience_waits_for_the_time_of_the_holder(shelf):
    held, hasty = Leases(shelf(), seconds=1000.0), Leases(shelf(), seconds=0.1)
    lease = held.take("cell")  # its next beat is minutes away
    assert hasty.take("cell") is None
    time.sleep(0.4)
    assert hasty.take("cell") is None
    assert held.ours(lease)
    held.close()


def test_beats_keep_a_lease(shelf):
    held, other = Leases(shelf(), seconds=0.6), Leases(shelf(), seconds=0.6)
    lease = held.take("cell")
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        assert other.take("cell") is None
        time.sleep(0.1)
    assert held.ours(lease)
    held.close()


def test_one_heir_of_a_dead_holder(shelf):
    foreign(shelf(), "cell")
    contenders = [Leases(shelf(), seconds=0.5) for _ in range(6)]
    assert not any(each.take("cell") for each in contenders)
    time.sleep(0.7)
    barrier = threading.Barrier(6)

    def inherit(leases):
        barrier.wait()
        return leases.take("cell")

    with ThreadPoolExecutor(6) as pool:
        found = [lease for lease in pool.map(inherit, contenders) if lease]
    assert len(found) == 1


def test_who_slept_too_long_has_lost_it_and_leaves_it_to_the_new_holder(shelf, monkeypatch):
    monkeypatch.setattr(Leases, "_renew", lambda self: None)  # asleep
    sleeper, other = Leases(shelf(), seconds=0.4), Leases(shelf(), seconds=0.4)
    lease = sleeper.take("cell")
    assert other.take("cell") is None
    time.sleep(0.6)
    taken = other.take("cell")
    assert taken is not None
    assert not sleeper.ours(lease)
    assert lease.lost
    sleeper.release(lease)
    assert other.ours(taken)


def test_an_heir_that_died_is_forgotten(shelf):
    dead = foreign(shelf(), "cell")
    foreign(shelf(), f"cell.heir-{dead.token}")
    leases, until = Leases(shelf(), seconds=0.3), time.monotonic() + 10
    while (lease := leases.take("cell")) is None:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert leases.ours(lease)


def test_a_damaged_record_expires_too(shelf):
    shelf().create("cell", b"{half")
    leases = Leases(shelf(), seconds=0.3)
    assert leases.take("cell") is None
    time.sleep(0.5)
    assert leases.take("cell") is not None


def test_a_process_that_ended_here_is_dead_at_once(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from quantarena.bench.storage.leases import Leases\n"
        "from quantarena.bench.storage.shelves import FolderShelf\n"
        "assert Leases(FolderShelf(pathlib.Path(sys.argv[1]))).take('cell')\n"
        "import os; os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=120)
    leases = Leases(FolderShelf(tmp_path))
    assert leases.holder("cell").gone()
    assert leases.take("cell") is not None  # no waiting
    leases.close()


def test_a_pid_that_is_used_again_is_another_process():
    me = this_process()
    assert not me.gone()
    assert replace(me, born="1").gone()
    assert replace(me, pid=2**22 + 1).gone()
    # of another machine or container nothing is known
    assert not replace(me, boot="another", pid=2**22 + 1).gone()


def test_a_file_system_without_links_has_leases_too(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    one, other = (Leases(FolderShelf(tmp_path)) for _ in range(2))
    lease = one.take("cell")
    assert lease is not None
    assert other.take("cell") is None
    one.release(lease)
    assert other.take("cell") is not None


def test_sweep_deletes_what_the_dead_left(tmp_path):
    shelf = FolderShelf(tmp_path)
    owner = replace(this_process(), born="1")
    shelf.create("dead", json.dumps({"owner": owner.to_dict()}).encode())
    foreign(shelf, "unknown")
    assert Leases(shelf).sweep() == 1
    assert shelf.names() == ["unknown"]


def test_sweep_leaves_what_a_live_process_inherits_at_that_moment(tmp_path, monkeypatch):
    shelf, heir = FolderShelf(tmp_path), Leases(FolderShelf(tmp_path))
    shelf.create(
        "cell", json.dumps({"owner": replace(this_process(), born="1").to_dict()}).encode()
    )
    sweeper = Leases(shelf)
    holder = Leases.holder
    taken = []

    def read_then_lose_the_race(self, name):
        found = holder(self, name)
        taken.append(heir.take(name))
        return found

    monkeypatch.setattr(Leases, "holder", read_then_lose_the_race)
    assert sweeper.sweep() == 0
    assert heir.ours(taken[0])
    heir.close()


def test_a_record_that_somebody_deleted_is_put_back(shelf):
    leases, other = Leases(shelf()), Leases(shelf())
    lease = leases.take("cell")
    shelf().delete("cell")
    assert leases.ours(lease)
    assert other.take("cell") is None
    shelf().delete("cell")
    theirs = other.take("cell")
    assert not leases.ours(lease)
    assert other.ours(theirs)
    other.release(theirs)
    assert not leases.ours(lease)  # once lost, it stays lost
    leases.close()
    assert shelf().names() == []


def test_a_process_that_cannot_be_seen_is_not_dead(monkeypatch):
    """/proc may hide the processes of other users, or no file be left to open."""
    other = replace(this_process(), born="1", pid=os.getppid())
    assert other.gone()

    def refuse(error):
        def read(*args, **kwargs):
            raise error

        monkeypatch.setattr(owner_module.Path, "read_text", read)

    boot = owner_module._boot()
    monkeypatch.setattr(owner_module, "_boot", lambda: boot)
    for error in (OSError(errno.EMFILE, ""), PermissionError(errno.EACCES, "")):
        refuse(error)
        assert not other.gone()
    refuse(FileNotFoundError(errno.ENOENT, ""))
    assert not other.gone()  # a signal would reach it
    assert replace(other, pid=2**22 + 1).gone()


def test_a_store_that_fails_for_a_moment_is_asked_again(monkeypatch):
    system, calls = fsspec.filesystem("memory"), []
    monkeypatch.setattr(shelves, "WAITS", (0.0,) * 12)

    class Flaky:
        def __getattr__(self, name):
            def call(*args, **rest):
                calls.append(name)
                done = getattr(system, name)(*args, **rest)
                if calls.count(name) % 3:  # the answer is lost, twice
                    raise ConnectionLost("no answer")
                return done

            return getattr(system, name) if name == "unstrip_protocol" else call

    class ConnectionLost(Exception):
        pass

    leases = Leases(ObjectShelf(Flaky(), f"/flaky-{time.monotonic_ns()}"), seconds=1000.0)
    lease = leases.take("cell")  # the first put came through, and was answered at the third
    assert lease is not None
    assert leases.ours(lease)
    leases.release(lease)

    class Gone(Flaky):
        def __getattr__(self, name):
            if name == "unstrip_protocol":
                return lambda path: f"gone://{path}"
            raise ConnectionLost("nobody there")

    with pytest.raises(UserError, match=r"cannot reach gone:///x .*nobody there.*again") as told:
        ObjectShelf(Gone(), "/x").read("cell")
    assert "\n" not in str(told.value)


def test_a_create_that_looks_first_is_refused():
    """fsspec's own: it asks whether there is an object, and writes one after that."""

    class TwoSteps(type(fsspec.filesystem("memory"))):
        protocol = "twosteps"
        cachable = False
        pipe_file = fsspec.AbstractFileSystem.pipe_file

    with pytest.raises(UserError, match="has no conditional writes"):
        ObjectShelf(TwoSteps(), "/two").require_conditions()


def test_a_store_that_ignores_conditions_is_refused(tmp_path):
    system = fsspec.filesystem("memory")
    ObjectShelf(system, "/probe").require_conditions()

    class Careless:
        def __getattr__(self, name):
            return getattr(system, name)

        def pipe_file(self, path, data, mode="overwrite"):
            system.pipe_file(path, data)

    with pytest.raises(UserError, match="has no conditional writes"):
        ObjectShelf(Careless(), "/probe").require_conditions()


@pytest.mark.parametrize(("said", "seconds"), [("", 60), ("5", 5), ("soon", 60), ("0.1", 60)])
def test_the_time_of_a_lease_can_be_set(monkeypatch, said, seconds):
    monkeypatch.setenv(VARIABLE, said)
    assert lease_seconds() == seconds


def _count(folder, number, out):
    leases = Leases(FolderShelf(folder / "leases"), seconds=5.0)
    for index in range(number):
        while (lease := leases.take(f"n{index}")) is None:
            time.sleep(0.005)
        mark = folder / f"done-{index}"
        if not mark.exists():
            time.sleep(0.01)
            mark.write_text("")
            with open(out, "a") as stream:
                stream.write(f"{index}\n")
        leases.release(lease)


def test_three_processes_share_work_without_doubling_it(tmp_path):
    context = multiprocessing.get_context("fork")
    out = tmp_path / "log"
    workers = [context.Process(target=_count, args=(tmp_path, 20, out)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert sorted(map(int, out.read_text().split())) == list(range(20))
