"""Two drivers on one results folder: they share the work, and one goes on without the other."""

import json
import signal
import subprocess
import time
from collections import Counter

import pytest

from quantarena.bench.storage.status import run_status
from quantarena.bench.store import Store

SLOW = 240
"""Seconds that two processes may take on a machine that others use."""


def wait_for(condition, seconds=SLOW):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def driver(bench, command, monkeypatch):
    """Starts a driver over fake stages that have cache entries; it is killed at the end."""
    monkeypatch.setenv("QUANTARENA_LEASE_SECONDS", "6")
    line = command(bench, "run", "smoke", "--executor", "local", stages="fake_shared_stages")
    started = []

    def start():
        child = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()


def check(bench):
    """Every cell has one row, and nothing was done twice."""
    counts = Counter(bench.log())
    assert set(counts.values()) == {1}, counts
    rows = bench.rows()
    assert len(rows) == 5
    assert {row.status for row in rows} == {"ok"}
    assert {row.attempt for row in rows} == {1}
    assert all(row.latency is not None for row in rows)
    assert not list((bench.results / "smoke" / "rows" / "earlier").glob("*"))
    for place in (bench.results / "smoke", bench.cache):
        assert not [p for p in (place / ".leases").glob("*")]


def test_two_drivers_share_the_work_without_doubling_it(bench, driver):
    bench.behave(fp__fp="turns", rtn__w4a8="turns")
    both = [driver(), driver()]
    ends = [child.communicate(timeout=SLOW) for child in both]
    assert [child.returncode for child in both] == [0, 0], ends
    check(bench)
    assert all(out.startswith("5 ok, 0 skipped, 0 failed") for out, _ in ends)
    by = Counter(line.rpartition(" ")[2] for line in log_lines(bench) if line.startswith("cell "))
    assert sum(by.values()) == 5
    assert len(by) == 2, f"one driver did all: {by}"
    assert run_status(Store(bench.results / "smoke")).state == "complete"


def log_lines(bench):
    return (bench.cache / "log.txt").read_text().splitlines()


def test_a_killed_driver_is_dead_at_once_and_the_other_goes_on(bench, driver):
    bench.behave(rtn__w4a4="hang")
    first = driver()
    log = bench.cache / "log.txt"
    wait_for(lambda: log.is_file() and "cell rtn/w4a4" in log.read_text())
    second = driver()
    # The second does all but the cell that the first one hangs in, and waits for that one.
    wait_for(lambda: sum(1 for line in bench.log() if line.startswith("cell ")) == 5)
    store = Store(bench.results / "smoke")
    wait_for(lambda: len(run_status(store).live) == 2)
    bench.behave()
    first.send_signal(signal.SIGKILL)
    first.wait()
    status = run_status(store)
    assert [note.owner.pid for note in status.dead] == [first.pid]
    assert [note.owner.pid for note in status.live] == [second.pid]
    assert status.state == "running"
    out, err = second.communicate(timeout=SLOW)
    assert second.returncode == 0, err
    assert out.startswith("5 ok")
    counts = Counter(bench.log())
    assert counts.pop("cell rtn/w4a4") == 2  # once by each: the first never finished it
    assert set(counts.values()) == {1}
    assert len(bench.rows()) == 5


def test_a_driver_that_slept_loses_its_cell_and_doubles_no_row(bench, driver):
    bench.behave(rtn__w4a4="nap")
    first = driver()
    log = bench.cache / "log.txt"
    wait_for(lambda: log.is_file() and "cell rtn/w4a4" in log.read_text())
    first.send_signal(signal.SIGSTOP)
    bench.behave()
    second = driver()
    wait_for(lambda: "timed" in log.read_text() or bench.log().count("cell rtn/w4a4") == 2)
    wait_for(lambda: len(bench.rows()) == 5)
    first.send_signal(signal.SIGCONT)
    ends = [child.communicate(timeout=SLOW) for child in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], ends
    said = ends[0][1]  # by whether the other one still had it
    assert "another run has taken it over" in said or "rtn/w4a4 ok, by another run" in said
    assert {row.attempt for row in bench.rows()} == {1}
    assert len(bench.rows()) == 5


def test_force_needs_the_folder_alone(bench, driver):
    bench.behave(rtn__w4a4="hang")
    first = driver()
    log = bench.cache / "log.txt"
    wait_for(lambda: log.is_file() and "cell rtn/w4a4" in log.read_text())
    code, _, err = bench("run", "smoke", "--force")
    assert code == 2
    assert f"process {first.pid} on" in err
    assert "--force" in err


def test_status_of_a_run(bench, driver):
    bench.behave(rtn__w4a4="hang")
    first = driver()
    log = bench.cache / "log.txt"
    wait_for(lambda: log.is_file() and "cell rtn/w4a4" in log.read_text())
    wait_for(lambda: "rtn/w4a4" in bench("status", "smoke")[1])  # at the driver's next beat
    code, out, _ = bench("status", "smoke")
    assert code == 0
    assert "running, 2 of 5 cells" in out
    assert f"process {first.pid} on" in out
    assert "quantize 3/10" in out
    first.kill()
    first.wait()
    code, out, _ = bench("status", str(bench.results / "smoke"))
    assert code == 1
    assert ": dead, 2 of 5 cells" in out
    assert "dead since 20" in out
    assert "the same command goes on with it" in out
    code, out, _ = bench("status", "smoke", "--json")
    assert [note["is"] for note in json.loads(out)["drivers"]] == ["dead"]
    assert bench("status", "nothing")[0] == 2
