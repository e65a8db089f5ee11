"""TFMQ-DM: temporal features are kept where a block's own target does not keep them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.policy import Policy
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import Role, trace
from quantarena.methods.info import Effort
from quantarena.methods.testing.conformance import check
from quantarena.methods.tfmq_dm import TEMPORAL_ROLES, TfmqDm, spread

CALLS = 16
FLAT = Policy("flat")


class Timed(nn.Module):
    """A block that adds a projection of the time embedding to a small part of the sample."""

    def __init__(self, grows):
        super().__init__()
        self.grows = grows
        self.embed = nn.Sequential(nn.Linear(16, 48), nn.SiLU(), nn.Linear(48, 48))
        self.block = Added()
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, sample, timestep=None, return_dict=True):
        waves = torch.arange(1, 9) * timestep.reshape(-1, 1).float() * math.pi / CALLS
        size = torch.exp(self.grows * timestep.reshape(-1, 1).float() / CALLS)
        emb = self.embed(size * torch.cat([waves.sin(), waves.cos()], 1))
        return (self.last(self.block(sample, emb)),)


class Added(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.project = nn.Conv2d(3, 4, 1), nn.Linear(48, 4)
        self.out = nn.Conv2d(4, 4, 1)

    def forward(self, x, emb):
        y = 0.3 * self.conv(x) + self.project(nn.functional.silu(emb))[:, :, None, None]
        return self.out(y)


def context(network, bits, effort, variant="paper"):
    make = torch.Generator().manual_seed(5)
    recorded = Trajectory(
        torch.randn(CALLS, 6, 3, 4, 4, generator=make), torch.arange(CALLS).float(), {}
    )
    graph = trace(network, recorded.sample[0, :2], timestep=recorded.timestep[:2])
    return MethodContext(network, graph, recorded, bits, FLAT, variant, 0, effort)


def features(model, network):
    """The projection's outputs at every call, of the quantized and the original network."""
    time = torch.arange(CALLS).float()
    sample = torch.randn(CALLS, 3, 4, 4)
    found = []
    for net in (model.module, network):
        handle = net.block.project.register_forward_hook(lambda m, a, out: found.append(out))
        with torch.no_grad(), model.clock.at(torch.arange(CALLS)):
            net(sample, time)
        handle.remove()
    return found


def error(network, bits, effort, **options):
    network = network.eval().requires_grad_(False)
    model = TfmqDm(TfmqDm.Options(**options)).run(context(network, bits, effort))
    ours, wanted = features(model, network)
    own = torch.cdist(ours, wanted).argmin(1) == torch.arange(CALLS)
    return float((ours - wanted).square().sum() / wanted.square().sum()), float(own.float().mean())


def planted(grows):
    torch.manual_seed(2)
    return Timed(grows)


def test_the_time_embedding_is_found():
    graph = context(planted(0.0), Bits(4, 4), Effort(8, 0)).graph
    roles = {name: layer.role for name, layer in graph.layers.items()}
    assert roles["embed.0"] == roles["embed.2"] == Role.TIME_EMBED
    assert roles["block.project"] == Role.EMB_PROJ
    assert roles["block.conv"] not in TEMPORAL_ROLES


def test_temporal_blocks_keep_features_that_blocks_lose():
    """Blocks see four of sixteen calls; the finite set has them all."""
    bits, effort = Bits(3, 8), Effort(4, 400)
    ours, _ = error(planted(0.0), bits, effort)
    blocks, _ = error(planted(0.0), bits, effort, temporal_blocks=False)
    nearest, _ = error(planted(0.0), bits, Effort(4, 0))
    assert ours <= 0.5 * blocks
    assert ours <= 0.7 * nearest


def test_ranges_by_call_keep_the_features_of_quiet_calls():
    """Inputs of the temporal layers grow fiftyfold over the calls."""
    bits, effort = Bits(8, 4), Effort(32, 0)
    ours, own = error(planted(4.0), bits, effort)
    shared, confused = error(planted(4.0), bits, effort, finite_set=False)
    assert ours <= 0.5 * shared
    assert own == 1.0 > confused


def test_paper_gives_tables_to_temporal_layers_and_the_release_to_all():
    network = planted(0.0).eval().requires_grad_(False)
    banks = {}
    for variant in ("paper", "release"):
        model = TfmqDm().run(context(network, Bits(4, 4), Effort(16, 0), variant))
        banks[variant] = {n for n, x in model.layers.items() if x.only_part.static.steps == CALLS}
    assert banks["paper"] == {"embed.0", "embed.2", "block.project"}
    assert banks["release"] == set(model.layers)


def test_other_blocks_leave_the_temporal_layers_alone(pixel):
    made, seen = [], {}

    class Watched(TfmqDm):
        def _reconstruct(self, ctx, model, *rest):
            made.append(model)
            return super()._reconstruct(ctx, model, *rest)

    def codes(model):
        return {
            name: layer.only_part.weight_quantizer.codes.clone()
            for name, layer in model.layers.items()
            if pixel.graph.layers[name].role in TEMPORAL_ROLES
        }

    def progress(done, total):
        if done == 1:  # the temporal block is through
            seen.update(codes(made[0]))

    context = replace(pixel.context(Bits(3, 8), "paper", Effort(16, 20)), progress=progress)
    model = Watched().run(context)
    assert len(seen) > 5
    assert all(torch.equal(value, seen[name]) for name, value in codes(model).items())
    first = model.notes["reconstruction"][0]
    assert first["block"] == "time_embedding"
    assert first["after"] < first["before"]


def test_features_depend_on_the_call_alone():
    network = planted(0.0).eval().requires_grad_(False)
    model = TfmqDm().run(context(network, Bits(4, 4), Effort(16, 0)))
    one, other = features(model, network)[0], features(model, network)[0]
    assert torch.equal(one, other)


def test_the_finite_set_has_every_call_and_many_rows(transformer):
    points = transformer.context(Bits(4, 4), "paper", Effort(16, 0)).range_points()
    few = spread(points, 8)
    assert few.histogram() == dict.fromkeys(range(4), 2)
    assert len(few.image.unique()) == 8
    assert spread(points, 1).histogram() == dict.fromkeys(range(4), 1)
    assert len(spread(points, 1000)) == len(points)


def test_a_transformer_has_a_temporal_block_for_each_embedding(transformer):
    model = TfmqDm().run(transformer.context(Bits(4, 8), "paper", Effort(16, 4)))
    blocks = [note["block"] for note in model.notes["reconstruction"]]
    assert blocks[:2] == [f"transformer_blocks.{i}.norm1.emb" for i in range(2)]


@pytest.mark.slow
def test_conformance():
    results = check("tfmq_dm", effort=Effort(samples=8, iterations=4))
    assert {(r.name, r.model): r.detail for r in results if not r.passed} == {}
