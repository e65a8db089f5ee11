"""Networks that take turns at being timed, beside processes that take their core away."""

import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from quantarena.bench.devices import turns
from quantarena.bench.devices.turns import Call, Turns, take_turns, waits
from quantarena.methods.core.record.trajectory import CalibrationSet

POINTS = CalibrationSet(torch.zeros(2, 3, 4, 4), torch.zeros(2), torch.zeros(2))


class Busy(nn.Module):
    """Works for a while of processor time."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.order = seconds, []

    def forward(self, sample, timestep, return_dict=True):
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return (sample,)


SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
print("on", flush=True)
while True:
    pass
"""


@pytest.fixture
def shared_core():
    """This thread on one core, which it shares with another process."""
    if not waits():
        pytest.skip("this system does not count what threads wait")
    before = os.sched_getaffinity(0)
    core = min(before)
    words = [sys.executable, "-c", SPIN, str(core)]
    other = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "on\n"
    os.sched_setaffinity(0, {core})
    yield
    os.sched_setaffinity(0, before)
    other.kill()
    other.communicate()


def planted(monkeypatch, seconds, waited):
    """Calls with the given times, one after another."""
    calls = iter(zip(seconds, waited, strict=True))
    monkeypatch.setattr(turns, "_call", lambda network, points: Call(*next(calls)))


def test_a_disturbed_round_is_timed_again(monkeypatch):
    quiet, held = (1.0, 2.0), (3.0, 2.0)
    rounds = [quiet] * turns.WARMUP + [quiet, held, quiet, quiet]
    flat = [
        s for index, pair in enumerate(rounds) for s in (pair if index % 2 == 0 else pair[::-1])
    ]
    planted(monkeypatch, flat, [2.0 if s == 3.0 else 0.0 for s in flat])
    ticks = []
    found = take_turns(
        {"a": nn.Identity(), "b": nn.Identity()}, POINTS, 3, lambda *tick: ticks.append(tick)
    )
    assert found.seconds("a") == [1.0] * 3
    assert found.seconds("b") == [2.0] * 3
    assert (found.disturbed, found.warning) == (0, "")
    assert ticks[-1] == (6, 6)
    assert [done for done, _ in ticks] == sorted(done for done, _ in ticks)


def test_where_no_round_is_quiet_the_least_disturbed_are_kept_and_told(monkeypatch):
    seconds = [1.0 + index / 10 for index in range(turns.WARMUP + 6)]
    planted(monkeypatch, seconds, [s - 0.9 for s in seconds])
    found = take_turns({"a": nn.Identity()}, POINTS, 2)
    assert found.seconds("a") == pytest.approx([1.3, 1.4])
    assert found.disturbed == 2
    assert "2 of 2 timed rounds" in found.warning


def test_networks_change_places_in_every_round():
    order = []

    class Named(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, sample, timestep, return_dict=True):
            order.append(self.name)
            return (sample,)

    take_turns({"a": Named("a"), "b": Named("b")}, POINTS, 1)
    assert "".join(order)[:8] == "abbaabba"


def test_a_second_process_on_the_core_is_seen(shared_core):
    longer_than_any_turn_on_a_core = 0.2
    found = take_turns({"busy": Busy(longer_than_any_turn_on_a_core)}, POINTS, 1)
    assert found.disturbed == 1
    assert found.seconds("busy")[0] > 0.25
    (call,) = found.calls["busy"]
    assert call.seconds - call.waited == pytest.approx(0.2, rel=0.25)


def test_an_empty_warning_where_nothing_was_disturbed():
    assert Turns({"a": [Call(1.0, 0.01)]}, 0).warning == ""
    assert not Call(1.0, 0.04).disturbed
    assert Call(1.0, 0.06).disturbed
