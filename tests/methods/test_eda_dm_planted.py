"""EDA-DM's mixing where few points leave the roundings of wide blocks open."""

import math

import pytest
import torch
from torch import nn

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.policy import FLOAT, Policy
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import Role, trace
from quantarena.methods.eda_dm import EDADM
from quantarena.methods.info import Effort

CALLS, ROWS, HELD, SEEDS = 4, 8, 16, range(48)
ENDS_FLOAT = Policy("flat", roles={Role.INPUT: FLOAT, Role.OUTPUT: FLOAT})


class Narrow(nn.Module):
    """Three layers 64 channels wide between residual streams of eight."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 8)])
        with torch.no_grad():  # so that the block matters beside its input
            for layer in self.layers:
                layer.weight *= 2.2

    def forward(self, x):
        first, second, third = self.layers
        return x + third(torch.relu(second(torch.relu(first(x)))))


class Network(nn.Module):
    """Two such blocks on tokens; a token's eight outputs say little about 5,000 weights."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.blocks = nn.Sequential(Narrow(), Narrow())

    def forward(self, sample, timestep=None, return_dict=True):
        x = self.blocks(self.first(sample.flatten(2).mT))
        return (self.last(x).mT.reshape(sample.shape),)


def error(seed, points, side, **off):
    """Relative error on other images; each image is ``side`` times ``side`` tokens."""
    torch.manual_seed(seed)
    network = Network().eval().requires_grad_(False)
    make = torch.Generator().manual_seed(3 + seed)
    sample = torch.randn(CALLS, ROWS + HELD, 4, side, side, generator=make)
    times = torch.arange(CALLS).float()
    graph = trace(network, sample[0, :2], timestep=times[:1])
    recorded, effort = Trajectory(sample[:, :ROWS], times, {}), Effort(points, 800)
    context = MethodContext(network, graph, recorded, Bits(3, 4), ENDS_FLOAT, "paper", 0, effort)
    made = EDADM(EDADM.Options(tdac=False, **off)).run(context)
    step = torch.arange(CALLS).repeat_interleave(HELD)
    others = Trajectory(sample[:, ROWS:], times, {}).pick(step, torch.arange(HELD).repeat(CALLS))
    with torch.no_grad():
        target = others.call(network)
        return float((made.run(others) - target).square().mean() / target.square().mean())


@pytest.mark.long
def test_mixing_does_no_harm_where_points_are_few():
    """The mean over many networks: that of six was 1.3, by chance. docs/methods/eda_dm.md."""
    gains = [math.log(error(s, 4, 1, mixing=False) / error(s, 4, 1)) for s in SEEDS]
    assert math.exp(sum(gains) / len(gains)) >= 0.95
