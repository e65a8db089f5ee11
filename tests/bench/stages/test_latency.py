from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.bench.memory import peak_growth
from quantarena.bench.stages.latency import Baseline, measure
from quantarena.methods.core.record.trajectory import CalibrationSet

POINTS = CalibrationSet(torch.zeros(2, 3, 4, 4), torch.zeros(2), torch.zeros(2))


def test_measure_sees_which_is_faster(sleeper):
    fast, slow, ticks = sleeper(0.001), sleeper(0.004), []
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
    assert ticks[-1] == (23, 23)  # also where others had the cores


def test_full_precision_against_a_copy_of_itself_is_no_faster(sleeper):
    original, same = sleeper(0.002), sleeper(0.002)
    found, _ = measure(
        same, original, POINTS, backend="fp32", setting="fp32 eager", images=1, steps=1, rounds=20
    )
    assert found.fp_setting == "fp32 eager"
    assert original.calls == same.calls - 1 >= 23  # one more for its peak
    assert found.ratio_low <= 1.5
    assert found.ratio_high >= 0.67


def test_a_setting_that_turns_out_to_be_faster_is_told(sleeper):
    settings = ("fp32 eager", "fp32 channels_last", "openvino fp32")
    chosen = Baseline("fp32 eager", nn.Identity(), nn.Identity(), "fp32 channels_last", settings)
    found, _ = measure(
        sleeper(0.001),
        sleeper(0.004),
        POINTS,
        backend="openvino fp32",
        setting="fp32 eager",
        images=2,
        steps=10,
        rounds=20,
    )
    faster = replace(found, ratio=1.12, ratio_low=1.07, ratio_high=1.15)
    line = chosen.doubt("openvino fp32", faster)
    assert "openvino fp32 is 1.12 times as fast here (95 % interval 1.07 to 1.15)" in line
    assert "fp32 eager" in line
    assert chosen.doubt("fp32", faster).startswith("fp32 channels_last is 1.12")
    assert chosen.doubt("openvino fp32", replace(faster, ratio_low=0.99)) == ""
    # its own images are not full precision's, or it is quantized
    assert chosen.doubt("bf16 eager", faster) == chosen.doubt("packed", faster) == ""
    assert replace(chosen, name="openvino fp32").doubt("openvino fp32", faster) == ""


def test_a_setting_that_fails_is_told_on_full_precisions_own_row():
    broken = {"fp@openvino": "RuntimeError: no such primitive"}
    chosen = Baseline("fp32 eager", nn.Identity(), nn.Identity(), "fp32 eager", (), broken)
    (line,) = chosen.missing("fp32")
    assert "fp@openvino" in line
    assert "no such primitive" in line
    assert chosen.missing("packed") == []


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
