"""Tables in place of layers that the sampler call decides: bit-exact, and for these calls alone."""

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import FP
from quantarena.methods.core.errors import UserError
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.record.announce import announcing
from quantarena.methods.core.record.steps import WholeWalks
from quantarena.methods.core.trace.network import Role
from quantarena.methods.techniques.distill.time_layers import tabulate_time_layers

TIME = (Role.TIME_EMBED, Role.EMB_PROJ, Role.ADALN)


def tabulated(probe, rows=4):
    model = wrap(probe.model, probe.graph, dict.fromkeys(probe.graph.layers, FP))
    points = WholeWalks(rows).draw(probe.trajectory, 0)
    names = [name for name, info in probe.graph.layers.items() if info.role in TIME]
    return model, points, names, tabulate_time_layers(model, points, names)


def test_tables_are_the_live_layers_bit_for_bit(probe):
    model, points, names, kept = tabulated(probe)
    assert set(model.tables) == set(names) - set(kept)
    assert model.tables
    live = {}
    for name in model.tables:
        probe.model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: live.__setitem__(name, output)
        )
    try:
        for call in range(4):
            here = points.rows(points.step == call)
            with torch.no_grad(), model.clock.at(call):
                assert torch.equal(here.call(model.module), here.call(probe.model))
                for name, table in model.tables.items():
                    assert torch.equal(table(torch.zeros(len(here), 1)), live[name])
    finally:
        for name in model.tables:
            probe.model.get_submodule(name)._forward_hooks.clear()


def test_mixed_calls_are_the_loop(probe):
    model, points, _, _ = tabulated(probe)
    mixed = points.rows(torch.tensor([14, 0, 9, 5]))
    with torch.no_grad():
        parts = torch.cat([model.run(part) for part in mixed.batches(1)])
        assert torch.allclose(model.run(mixed), parts, atol=1e-5)


def test_layers_that_see_the_condition_stay(transformer, pixel):
    _, _, names, kept = tabulated(transformer)
    roles = {name: transformer.graph.layers[name].role for name in names}
    assert {roles[name] for name in kept} == {Role.ADALN}, "class and time make the modulation"
    assert set(kept.values()) == {"depends on more than the sampler call"}
    assert tabulated(pixel)[3] == {}


def test_one_point_cannot_tell(pixel):
    model, _, names, kept = tabulated(pixel, rows=1)
    assert set(kept) == set(names)
    assert not model.tables


def test_a_layer_that_gives_two_outputs_at_a_call_stays():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(1, 4)

        def forward(self, sample, timestep=None, return_dict=True):
            time = timestep.float()[:, None]
            return (sample + (self.embed(time) + self.embed(2 * time)).reshape(sample.shape),)

    from quantarena.methods.core.record.trajectory import Trajectory
    from quantarena.methods.core.trace.network import trace

    network = Twice().eval()
    recorded = Trajectory(torch.randn(2, 3, 1, 2, 2), torch.tensor([1.0, 0.0]), {})
    graph = trace(network, recorded.sample[0, :2], timestep=recorded.timestep[:1].expand(2))
    model = wrap(network, graph, dict.fromkeys(graph.layers, FP))
    kept = tabulate_time_layers(model, WholeWalks(3).draw(recorded, 0), ["embed"])
    assert kept == {"embed": "depends on more than the sampler call"}
    assert model.clock.schedule is None


def test_a_call_or_timestep_outside_the_schedule_is_an_error(pixel):
    from diffusers import DDIMScheduler

    model, points, _, _ = tabulated(pixel)
    first = points.rows(slice(0, 2))
    with pytest.raises(UserError, match="nobody said which"), torch.no_grad():
        first.call(model.module)
    with (
        pytest.raises(UserError, match="sampler call 4 announced, the table has 4"),
        torch.no_grad(),
        model.clock.at(4),
    ):
        first.call(model.module)
    scheduler = DDIMScheduler()
    with (
        pytest.raises(UserError, match="calibrated for 4 calls"),
        announcing(scheduler, model.clock),
    ):
        scheduler.set_timesteps(5)


def test_no_layers_cost_no_pass(probe):
    ran = []
    probe.model.register_forward_hook(lambda *args: ran.append(args))
    try:
        model, points, _, _ = tabulated(probe)
        assert ran
        ran.clear()
        assert tabulate_time_layers(model, points, ()) == {}
        assert not ran
    finally:
        probe.model._forward_hooks.clear()
