import time

import pytest
import torch
from torch import nn

from quantarena.bench.devices.turns import interleaved
from quantarena.bench.memory import peak_growth
from quantarena.bench.stages.latency import measure, ratio_interval
from quantarena.methods.core.record.trajectory import CalibrationSet


class Sleeper(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.calls = seconds, 0

    def forward(self, sample, timestep, return_dict=True):
        self.calls += 1
        time.sleep(self.seconds)
        return (sample,)


POINTS = CalibrationSet(torch.zeros(2, 3, 4, 4), torch.zeros(2), torch.zeros(2))


def test_ratio_and_interval():
    ratio, low, high = ratio_interval([2.0, 2.2, 1.8, 2.1], [1.0, 1.0, 1.0, 1.0])
    assert ratio == pytest.approx(2.05)
    assert 1.8 <= low <= ratio <= high <= 2.2
    assert ratio_interval([3.0] * 5, [2.0] * 5) == pytest.approx((1.5, 1.5, 1.5))


def test_a_machine_that_slows_down_keeps_its_ratio():
    drift = [1 + i / 5 for i in range(20)]
    ratio, low, high = ratio_interval([2 * d for d in drift], drift)
    assert (ratio, low, high) == pytest.approx((2, 2, 2))


def test_measure_sees_which_is_faster():
    fast, slow, ticks = Sleeper(0.001), Sleeper(0.004), []
    found, _ = measure(
        fast,
        slow,
        POINTS,
        backend="packed",
        setting="fp32 eager",
        images=2,
        steps=10,
        rounds=20,
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.ratio > 1.5
    assert found.step_ms < found.fp_step_ms
    assert found.step_ms >= 1
    assert found.image_ms == pytest.approx(found.step_ms * 10 / 2)
    assert (found.batch, found.rounds, found.threads) == (2, 20, torch.get_num_threads())
    assert found.backend == "packed"
    done, total = ticks[-1]
    assert 20 <= done <= total == 23  # fewer where others had the cores


def test_full_precision_against_a_copy_of_itself_is_no_faster():
    original, same = Sleeper(0.002), Sleeper(0.002)
    found, _ = measure(
        same, original, POINTS, backend="fp32", setting="fp32 eager", images=1, steps=1, rounds=20
    )
    assert found.fp_setting == "fp32 eager"
    assert original.calls == same.calls - 1 >= 23  # one more for its peak
    assert found.ratio_low <= 1.5
    assert found.ratio_high >= 0.67


def test_settings_take_turns():
    fast, slow = Sleeper(0.001), Sleeper(0.006)
    times = interleaved({"slow": slow, "fast": fast}, POINTS, rounds=3)
    assert times["fast"] < times["slow"]
    assert fast.calls == slow.calls >= 6


def test_peak_growth_sees_a_large_tensor():
    grown = peak_growth(lambda: torch.ones(16, 1024, 1024))
    assert grown == 0 or 50e6 < grown < 400e6


@pytest.mark.parametrize("error", [KeyError("x"), OSError("y"), RuntimeError("z")])
def test_errors_of_the_measured_come_out(error):
    def run():
        raise error

    with pytest.raises(type(error)):
        peak_growth(run)


def test_runs_where_memory_cannot_be_read(monkeypatch):
    def refuse(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    done = []
    assert peak_growth(lambda: done.append(1)) == 0
    assert done == [1]
