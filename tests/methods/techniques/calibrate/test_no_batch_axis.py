"""Layers whose input has no batch axis, such as a learned table, and layers of three axes."""

import pytest
import torch
from torch import nn

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.trace.network import trace
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.techniques.calibrate.by_call import by_call

CALLS, ROWS = 3, 8


class Odd(nn.Module):
    """A table through a linear layer, and a convolution over three axes."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(4, 16, 3, padding=1)
        self.table = nn.Parameter(torch.randn(5, 8))
        self.project = nn.Linear(8, 16)
        self.deep = nn.Conv3d(16, 16, 1)
        self.leave = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, sample, timestep, return_dict=False):
        h = torch.nn.functional.silu(self.enter(sample))
        h = h + self.project(self.table).mean(0)[None, :, None, None]
        return (self.leave(self.deep(h.unsqueeze(2)).squeeze(2)),)


def recorded(model):
    from diffusers import DDIMScheduler

    scheduler, x = DDIMScheduler(), torch.randn(ROWS, 4, 8, 8)
    with torch.no_grad(), recording(model, scheduler) as done:
        scheduler.set_timesteps(CALLS)
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.expand(ROWS))[0], t, x).prev_sample
    return done()


def made_by(name):
    torch.manual_seed(0)
    model = Odd().eval().requires_grad_(False)
    trajectory = recorded(model)
    start = trajectory.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    context = MethodContext(
        model,
        trace(model, start.sample, timestep=start.timestep),
        trajectory,
        Bits(4, 8),
        UNIFORM,
        "paper",
        0,
        Effort(16, 4),
    )
    return model, trajectory, entry(name).method().run(context)


@pytest.mark.parametrize("name", ["rtn", "serial_to_parallel", "vidit_q"])
def test_methods_quantize_such_a_network(name):
    model, trajectory, made = made_by(name)
    packed = pack(made)
    points = trajectory.pick(torch.arange(6) % CALLS, torch.arange(6))
    assert "project" in packed.layers
    assert parity(made, packed, points).max_rel < 1e-5
    with torch.no_grad(), packed.clock.at(points.step):
        error = (points.call(packed.module) - points.call(model)).norm()
    assert error / points.call(model).norm() < 0.5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("eda_dm", "project has 5 rows where the network has 8"),
        ("mpq_dm", "the relation loss compares places of images"),
        ("dilate_quant", "project cannot be reconstructed"),
    ],
)
def test_what_a_method_cannot_learn_from_is_one_line(name, reason):
    with pytest.raises(QuantArenaError, match=reason):
        made_by(name)


def test_a_shared_input_belongs_to_every_call():
    step = torch.tensor([0, 0, 2, 2])
    points = CalibrationSet(torch.zeros(4, 1), torch.zeros(4), step)
    table = torch.randn(3, 8)
    assert [(call, rows is table) for call, rows in by_call(table, points, True)] == [
        (0, True),
        (2, True),
    ]
    split = dict(by_call(torch.arange(8.0)[:, None], points, True))
    assert split[2].flatten().tolist() == [4, 5, 6, 7]
