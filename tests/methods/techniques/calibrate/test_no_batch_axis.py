"""Layers whose input has no batch axis in front, through every method, and layers of three axes."""

import pytest
import torch
from torch import nn

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.trace.network import trace
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.techniques.calibrate.by_call import at_call, by_call

CALLS, ROWS = 3, 8
METHODS = (
    *("rtn", "ptq4dm", "q_diffusion", "eda_dm", "dilate_quant", "mpq_dm", "dgq"),
    *("serial_to_parallel", "repquant", "svdquant", "vidit_q", "tuneqdm"),
)


def of_table(net, h):
    return net.project(net.table).mean(0)[None, :, None, None]


def of_vector(net, h):
    return net.project(net.table[0])[None, :, None, None]


def of_tokens_first(net, h):
    tokens = h.flatten(2).permute(2, 0, 1)[..., :8]
    return net.project(tokens).permute(1, 2, 0).reshape(h.shape)


def of_both(net, h):
    rows = net.project(h.mean((2, 3))[:, :8])
    return rows[:, :, None, None] + of_table(net, h)


class Odd(nn.Module):
    """Something without a batch axis through a linear layer, and a convolution over three axes."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.enter = nn.Conv2d(4, 16, 3, padding=1)
        self.table = nn.Parameter(torch.randn(8, 8))
        self.project = nn.Linear(8, 16)
        self.deep = nn.Conv3d(16, 16, 1)
        self.leave = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, sample, timestep, return_dict=False):
        h = torch.nn.functional.silu(self.enter(sample))
        h = h + self.way(self, h)
        return (self.leave(self.deep(h.unsqueeze(2)).squeeze(2)),)


def recorded(model):
    from diffusers import DDIMScheduler

    scheduler, x = DDIMScheduler(), torch.randn(ROWS, 4, 8, 8)
    with torch.no_grad(), recording(model, scheduler) as done:
        scheduler.set_timesteps(CALLS)
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.expand(ROWS))[0], t, x).prev_sample
    return done()


def made_by(name, way):
    torch.manual_seed(0)
    model = Odd(way).eval().requires_grad_(False)
    trajectory = recorded(model)
    start = trajectory.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    context = MethodContext(
        model,
        trace(model, start.sample, timestep=start.timestep),
        trajectory,
        Bits(4, 16 if name == "tuneqdm" else 8),
        UNIFORM,
        "paper",
        0,
        Effort(16, 4),
    )
    return model, trajectory, entry(name).method().run(context)


@pytest.mark.parametrize("way", [of_table, of_vector, of_tokens_first, of_both])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_quantizes_such_a_network(name, way):
    model, trajectory, made = made_by(name, way)
    packed = pack(made)
    assert "project" in packed.layers
    for rows in (6, 5):  # a batch of several calls, of other sizes than calibration had
        points = trajectory.pick(torch.arange(rows) % CALLS, torch.arange(rows))
        assert parity(made, packed, points).max_rel < 1e-5
        with torch.no_grad(), packed.clock.at(points.step):
            error = (points.call(packed.module) - points.call(model)).norm()
        assert error / points.call(model).norm() < 0.5


@pytest.mark.parametrize("way", [of_table, of_vector, of_tokens_first])
def test_such_a_layer_keeps_one_calibrated_range_and_the_others_learn(way):
    _, _, made = made_by("dilate_quant", way)
    assert made.notes["not_reconstructed"] == ["project"]
    assert [note["block"] for note in made.notes["distillation"]] == ["enter", "leave"]
    steps = {name: layer.only_part.static.steps for name, layer in made.layers.items()}
    assert steps == {"enter": CALLS, "project": 0, "leave": CALLS}


def test_ranges_cover_tokens_that_come_first():
    # by rows, values of one call would have been counted to another
    model, trajectory, made = made_by("serial_to_parallel", of_tokens_first)
    seen = []
    handle = model.project.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    points = trajectory.pick(torch.arange(6) % CALLS, torch.arange(6))
    points.call(model)
    handle.remove()
    params = made.layers["project"].only_part.static.params
    top = float((params.levels - 1 - params.zero_point) * params.scale)
    assert top > 0.5 * float(seen[0].max())


def test_features_and_relations_are_not_those_of_a_table():
    _, _, made = made_by("mpq_dm", of_table)
    assert made.notes["distillation"]["feature"] in ("enter", "leave")


def test_a_convolution_without_a_batch_axis_is_refused_by_name():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.bare = nn.Conv1d(4, 4, 1)

        def forward(self, sample, timestep, return_dict=False):
            return (self.bare(sample[0])[None],)

    with pytest.raises(Unsupported, match=r"^bare: .* without a batch axis"):
        trace(Bare(), torch.randn(2, 4, 8), timestep=torch.zeros(2))


def test_a_convolution_that_pads_otherwise_is_refused_by_name():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.ring = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")

        def forward(self, sample, timestep, return_dict=False):
            return (self.ring(sample),)

    network = Around().eval()
    graph = trace(network, torch.randn(2, 4, 8, 8), timestep=torch.zeros(2))
    context = MethodContext(
        network, graph, recorded(network), Bits(4, 8), UNIFORM, "paper", 0, Effort(8, 0)
    )
    with pytest.raises(Unsupported, match=r"^ring: .*zero padding"):
        entry("rtn").method().run(context)


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


def test_a_call_at_which_a_layer_did_not_run_takes_the_nearest():
    assert at_call({2: "a", 5: "b"}, 0) == "a"
    assert at_call({2: "a", 5: "b"}, 4) == "b"
