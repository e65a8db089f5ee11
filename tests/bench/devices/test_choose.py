"""The fastest of several networks, by the rounds in which they took turns."""

import statistics

import pytest
import torch
from torch import nn

from quantarena.bench.devices import choose as choices
from quantarena.bench.devices import turns
from quantarena.bench.devices.choose import DECIDING, FEW, choose, fastest_of, ratio_interval
from quantarena.bench.devices.turns import Call
from quantarena.methods.core.record.trajectory import CalibrationSet

POINTS = CalibrationSet(torch.zeros(2, 3, 4, 4), torch.zeros(2), torch.zeros(2))
EAGER = [0.060, 0.090, 0.100, 0.130, 0.140]
OPENVINO = [0.105, 0.080, 0.089, 0.116, 0.125]
"""Faster in four of five rounds, by 1.12, on a machine that changes its speed; slower by itself."""


class Scripted(nn.Module):
    """A network whose calls take what a list says, over and over; none is disturbed."""

    def __init__(self, seconds, waited=None):
        super().__init__()
        self.seconds, self.waited, self.calls = seconds, waited or [0.0], 0

    def next(self):
        index = max(0, self.calls - turns.WARMUP)
        self.calls += 1
        return Call(self.seconds[index % len(self.seconds)], self.waited[index % len(self.waited)])


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(turns, "_call", lambda network, points: network.next())
    return Scripted


def test_ratio_and_interval():
    ratio, low, high = ratio_interval([2.0, 2.2, 1.8, 2.1], [1.0, 1.0, 1.0, 1.0])
    assert ratio == pytest.approx(2.05)
    assert 1.8 <= low <= ratio <= high <= 2.2
    assert ratio_interval([3.0] * 5, [2.0] * 5) == pytest.approx((1.5, 1.5, 1.5))


def test_a_machine_that_slows_down_keeps_its_ratio():
    drift = [1 + i / 5 for i in range(20)]
    ratio, low, high = ratio_interval([2 * d for d in drift], drift)
    assert (ratio, low, high) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize("names", [("eager", "openvino"), ("openvino", "eager")])
def test_pairs_decide_where_medians_say_the_opposite(names):
    assert statistics.median(EAGER) < statistics.median(OPENVINO)
    seconds = {"eager": EAGER, "openvino": OPENVINO}
    assert fastest_of({name: seconds[name] for name in names}) == "openvino"
    assert ratio_interval(EAGER, OPENVINO)[0] == pytest.approx(1.12, abs=0.005)


def test_the_choice_follows_the_paired_rounds_and_their_interval(scripted):
    """The one odd round leaves it open after few rounds; fresh ones decide."""
    networks = {"eager": scripted(EAGER), "openvino": scripted(OPENVINO)}
    found = choose(networks, POINTS)
    assert found.name == "openvino"
    assert [len(stage["eager"]) for stage in found.stages] == [FEW, DECIDING]
    ratio, low, high = found.ratio("eager")
    assert ratio == pytest.approx(1.12, abs=0.005)
    assert 1 < low <= ratio <= high
    assert found.ratio("openvino") == (1.0, 1.0, 1.0)


def test_what_is_slower_in_every_round_drops_out(scripted):
    """Rounds of a slow network are not paid for again, and its ratio is kept."""
    networks = {
        "slow": scripted([3 * each for each in OPENVINO]),
        "eager": scripted(EAGER),
        "openvino": scripted(OPENVINO),
    }
    found = choose(networks, POINTS)
    assert found.name == "openvino"
    assert networks["slow"].calls == turns.WARMUP + FEW
    assert found.stages[1].keys() == {"eager", "openvino"}
    assert found.ratio("slow") == pytest.approx((3, 3, 3))
    assert found.among(["eager", "slow"]) == "eager"


def test_a_clear_case_takes_few_rounds(scripted):
    networks = {"fast": scripted([1.0, 1.1]), "slow": scripted([1.2, 1.3])}
    found = choose(networks, POINTS)
    assert (found.name, len(found.stages)) == ("fast", 1)
    assert networks["fast"].calls == turns.WARMUP + FEW


def test_fresh_rounds_overrule_the_first(scripted, monkeypatch):
    """Luck in the first rounds decides nothing between networks that are close."""
    lucky = [0.9, 0.9, 0.9, 1.2, 1.2, *[0.0] * 3, *[1.2] * DECIDING]
    networks = {"lucky": scripted(lucky), "steady": scripted([1.0])}
    found = choose(networks, POINTS)
    assert fastest_of(found.stages[0]) == "lucky"
    assert found.name == "steady"


def test_equals_go_to_the_first(scripted):
    networks = {"first": scripted([1.0]), "second": scripted([1.0])}
    assert choose(networks, POINTS).name == "first"


def test_a_choice_takes_off_what_a_call_waited(scripted):
    """The faster network loses by the clock, because another process had its core."""
    networks = {"slow": scripted([1.2]), "fast": scripted([1.9], waited=[1.0])}
    found = choose(networks, POINTS)
    assert found.name == "fast"
    assert found.ratio("slow") == pytest.approx((4 / 3,) * 3)


def test_a_call_that_only_waited_is_no_error(scripted):
    networks = {"held": scripted([1.0], waited=[1.0]), "other": scripted([1.0])}
    assert choose(networks, POINTS).stages[0]["held"] == [choices._LEAST] * FEW


def test_networks_take_turns(sleeper):
    fast, slow = sleeper(0.001), sleeper(0.006)
    assert choose({"slow": slow, "fast": fast}, POINTS).name == "fast"
    assert fast.calls == slow.calls >= turns.WARMUP + FEW
