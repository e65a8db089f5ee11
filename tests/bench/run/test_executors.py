import os
import signal
import time

import pytest

from quantarena.bench.errors import Interrupted
from quantarena.bench.run.executors import Setting, Task
from quantarena.bench.run.local_executor import LocalExecutor
from quantarena.bench.run.process_executor import AloneExecutor
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell

CELL = Cell("emoji-t2i", "rtn", "w4a8")
TASK = Task("time", CELL, Row(CELL, Status.OK, backend="packed"))


@pytest.fixture
def setting(bench):
    return Setting(str(bench.results / "smoke"), str(bench.cache), "fake_stages")


@pytest.fixture
def alone(setting):
    made = AloneExecutor(setting, lambda *news: None, timeout=3.0)
    yield made
    made.close()


def go(executor, task=TASK):
    executor.start(task)
    return executor.wait()


def test_timing_happens_in_a_process_that_is_used_again(alone, bench):
    for _ in range(2):
        assert go(alone).row.latency.ratio == 1.7
    pids = {line.split()[-1] for line in (bench.cache / "log.txt").read_text().splitlines()}
    assert len(pids) == 1
    assert str(os.getpid()) not in pids


@pytest.mark.parametrize(
    ("what", "status", "reason"),
    [
        ("kill", Status.FAILED, "the timing process died"),
        ("hang", Status.TIMEOUT, "stopped after 3 s"),
        ("raise", Status.FAILED, "RuntimeError: the fake was told to raise"),
    ],
)
def test_a_process_that_dies_or_hangs_is_replaced(alone, bench, what, status, reason):
    bench.behave(time=what)
    outcome = go(alone)
    assert outcome.status is status
    assert outcome.reason.startswith(reason)
    bench.behave()
    assert go(alone).status is Status.OK


def test_nothing_is_left_running(alone):
    go(alone)
    pid = alone._child.pid
    alone.close()
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_user_error_is_told_from_a_failure(setting, bench):
    bench.behave(prepare="user")
    outcome = go(LocalExecutor(setting, lambda *news: None), Task("prepare", CELL))
    assert outcome.user_error
    assert outcome.reason == "the model is damaged, fetch it again"


def test_progress_reaches_the_listener(setting):
    seen = []
    go(LocalExecutor(setting, lambda *news: seen.append(news)), Task("cell", CELL))
    assert seen == [(Task("cell", CELL), "quantize", 3, 10)]


def test_an_interrupt_is_not_swallowed(setting, bench, monkeypatch):
    import fake_stages

    def stop(*_, **__):
        raise Interrupted

    monkeypatch.setattr(fake_stages, "run_cell", stop)
    with pytest.raises(Interrupted):
        go(LocalExecutor(setting, lambda *news: None), Task("cell", CELL))


def test_a_child_process_that_was_changed_for_good_is_replaced(alone, bench):
    bench.behave(time="lasting")
    assert go(alone).lasting == ("the number of chairs",)
    bench.behave()
    assert go(alone).lasting == ()


def test_a_keyboard_interrupt_of_a_method_is_a_failure(setting, bench):
    """Where signals have handlers, as on the command line, nobody else raises a plain one."""
    bench.behave(rtn__w4a8="interrupt")
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        outcome = go(LocalExecutor(setting, lambda *news: None), Task("cell", CELL))
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.reason.startswith("KeyboardInterrupt")


def test_an_exception_of_a_kind_of_its_own_is_a_failure(setting, bench):
    bench.behave(rtn__w4a8="exit")
    outcome = go(LocalExecutor(setting, lambda *news: None), Task("cell", CELL))
    assert outcome.reason.startswith("GeneratorExit")
