"""The benchmark of the CUDA kernels, with a clock of its own."""

import json

import pytest
import torch
from torch import nn

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.cuda.device import interpreted_without_gpu, status
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.pack import PackedModel
from quantarena.methods.core.record.points import CalibrationSet

pytest.importorskip("triton", reason="triton is not installed; torch's CUDA wheels bring it")


with interpreted_without_gpu():
    from quantarena.methods.core.cuda.layer import INTERPRETED, CudaPackedLayer
    from quantarena.methods.timing import cuda as timing
    from quantarena.methods.timing.cases import Case


DEVICE = "cpu" if INTERPRETED else "cuda"


def timed(runs):
    """A clock that runs all, and says 2, 3, 4 ... seconds."""
    for run in runs.values():
        run()
    return {name: float(2 + i) for i, name in enumerate(runs)}


def test_benchmark_rows_hold_what_was_timed():
    case = Case("linear", (4, 32, 8))
    row = timing.measure(case, (4, 8), timed, DEVICE, tune=False)
    assert (row.seconds, row.product_seconds, row.bf16_seconds) == (2.0, 3.0, 4.0)
    assert row.ratio == 2.0
    assert row.tera_ops == pytest.approx(2e-12 * 4 * 32 * 8 / 3)
    found = json.loads(json.dumps(timing.document([row])))
    assert found["rows"][0]["ratio"] == 2.0
    assert found["rows"][0]["config"]["rows"] == row.config.rows
    assert "lin 4x32x8" in timing.line(row)


def test_benchmark_of_a_step_runs_all_contestants_on_the_same_batch(make_layer, make_input):
    class Network(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.conv = conv

        def forward(self, sample, timestep, scale, return_dict):
            seen.append((sample.dtype, timestep.dtype, scale.dtype, scale[0].item()))
            return (self.conv(sample),)

    seen, clock = [], CallClock()
    leaf = PackedLayer(make_layer((3, 3, 1, 1), 4, 8, steps=5))
    leaf.set_clock(clock)
    network = Network(leaf)
    points = CalibrationSet(
        make_input((2, 3, 2, 2)),
        torch.tensor([7, 7]),
        torch.tensor([4, 4]),
        {"scale": torch.tensor([2.0, 3.0])},
    )
    row = timing.measure_step(
        "tiny",
        "w4a8",
        PackedModel(network, {"conv": leaf}, "packed", clock),
        Network(nn.Conv2d(3, 3, 1)),
        points,
        timed,
        DEVICE,
        lambda step, _: step,
        lambda step: step,
    )
    assert isinstance(network.conv, CudaPackedLayer)
    assert seen == [(torch.bfloat16, torch.int64, torch.bfloat16, 2.0)] * 3
    assert (row.seconds, row.bf16_seconds, row.bf16_eager_seconds) == (2.0, 3.0, 4.0)
    assert (row.batch, row.ratio) == (2, 1.5)


@pytest.mark.skipif(not status().reason, reason="there is a GPU to time")
def test_benchmark_without_a_gpu_says_so(capsys):
    assert timing.main([]) == 2
    assert "nothing to time: no CUDA device" in capsys.readouterr().err
