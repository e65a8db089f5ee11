"""Averaged peaks of input channels: means over points, running averages over calls."""

import torch
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.calibrate.bounds import input_bounds
from quantarena.methods.techniques.calibrate.channel_peaks import mean_peaks


class Layers(nn.Module):
    """A convolution, a linear on tokens, a linear on vectors: all read what came in."""

    def __init__(self):
        super().__init__()
        self.image, self.tokens, self.vector = nn.Conv2d(3, 3, 1), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, sample, timestep=None, return_dict=True):
        tokens = self.tokens(sample.flatten(2).transpose(1, 2)).transpose(1, 2)
        y = self.image(sample) + tokens.reshape(sample.shape)
        return (y + self.vector(sample.amax((2, 3)))[:, :, None, None],)


def test_peaks_by_hand():
    network = Layers().eval().requires_grad_(False)
    sample = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    step = torch.tensor([2, 0, 1, 0, 2, 2])
    points = CalibrationSet(sample, step.float(), step)
    graph = trace(network, sample[:2], timestep=step[:2].float())
    model = wrap(network, graph, dict.fromkeys(graph.layers, Bits(8, 8)))
    found = mean_peaks(model, points, momentum=0.75, batch=4)
    peaks = sample.abs().amax((2, 3))
    calls = [peaks[step == call].mean(0) for call in range(3)]
    wanted = 0.75 * (0.75 * calls[0] + 0.25 * calls[1]) + 0.25 * calls[2]
    assert torch.allclose(found["image"], wanted)
    assert torch.allclose(found["tokens"], wanted)
    vector = sample.amax((2, 3)).abs()
    calls = [vector[step == call].mean(0) for call in range(3)]
    wanted = 0.75 * (0.75 * calls[0] + 0.25 * calls[1]) + 0.25 * calls[2]
    assert torch.allclose(found["vector"], wanted)


def test_one_far_value_counts_once(probe):
    model = wrap(probe.model, probe.graph, dict.fromkeys(probe.graph.layers, Bits(8, 8)))
    average = mean_peaks(model, probe.heldout, momentum=0.5)
    bounds = input_bounds(model, probe.heldout)
    assert average.keys() == bounds.keys()
    for name, peaks in average.items():
        assert (peaks <= bounds[name].absmax * (1 + 1e-5)).all()
    sample = probe.heldout.sample.clone()
    sample[0, 0, 0, 0] = 1e4
    far = CalibrationSet(
        sample, probe.heldout.timestep, probe.heldout.step, probe.heldout.conditions
    )
    first = next(iter(n for n, x in model.layers.items() if x.in_channels == sample.shape[1]))
    moved = mean_peaks(model, far, momentum=0.9)[first].max()
    assert moved < 0.7 * 1e4
