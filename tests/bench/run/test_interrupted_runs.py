"""Runs that are killed, stopped or interrupted: what is finished stays, the rest can go on."""

import os
import signal
import subprocess
import time

import pytest


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def start_hanging(bench, command):
    """A run that hangs in its fourth cell, and has three rows by then."""
    bench.behave(q_diffusion__w4a8="hang")
    child = subprocess.Popen(
        command(bench, "run", "smoke"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run as a background job inherit SIGINT ignored, and so would the child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = bench.cache / "log.txt"
    wait_for(lambda: log.is_file() and "cell q_diffusion/w4a8" in log.read_text())
    return child


def test_kill_9_loses_the_running_cell_only(bench, command):
    child = start_hanging(bench, command)
    child.kill()
    child.wait()
    assert {f"{r.cell.method}/{r.cell.bits}" for r in bench.rows()} == {
        "fp/fp",
        "rtn/w4a8",
        "rtn/w4a4",
    }
    assert not list((bench.results / "smoke/rows").glob(".*.tmp"))
    bench.behave()
    code, out, err = bench("run", "smoke")
    assert (code, out.split(" -> ")[0]) == (0, "5 ok, 0 skipped, 0 failed"), err
    assert "3 done, 2 to run" in err
    assert bench.log().count("cell rtn/w4a8") == 1
    # What was done before the kill had not been timed yet.
    assert all(row.latency is not None for row in bench.rows())


def test_a_method_that_ends_the_process_loses_its_own_cell_only(bench, run_script):
    """``os._exit`` cannot be caught in the process that it ends: the next run goes on."""
    bench.behave(q_diffusion__w4a8="quit")
    ended = run_script(bench, "run", "smoke", "--executor", "local")
    assert ended.stdout == ""
    done = {f"{row.cell.method}/{row.cell.bits}" for row in bench.rows()}
    assert done == {"fp/fp", "rtn/w4a8", "rtn/w4a4"}
    bench.behave()
    code, out, err = bench("run", "smoke", "--executor", "local")
    assert (code, out.split(" -> ")[0]) == (0, "5 ok, 0 skipped, 0 failed"), err
    assert "3 done, 2 to run" in err
    assert bench.log().count("cell rtn/w4a8") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_says_what_is_kept_and_how_to_go_on(bench, command, number):
    child = start_hanging(bench, command)
    os.kill(child.pid, number)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert out == ""
    assert "interrupted: 3 of 5 cells are kept in" in err
    assert "run the same command again to continue" in err
    assert "Traceback" not in err


def test_kill_9_in_mid_write_leaves_whole_rows(bench, command):
    """Kill at random moments: every file that is there is intact."""
    for delay in (0.5, 0.6, 0.7):
        child = subprocess.Popen(
            command(bench, "run", "smoke", "--force"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(delay)
        child.kill()
        child.wait()
    lines = []
    from quantarena.bench.store import Store

    Store(bench.results / "smoke", lines.append).rows()
    assert lines == []
    assert bench("run", "smoke")[0] == 0
