"""A sampler's whole run on a recorded step: guidance, tables by call, batches of several sizes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.kernels import native
from quantarena.methods.core.packed.nodes.fusion import fuse
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.step.recorded import LEARNING, RecordedStep

CALLS = 20
pytestmark = pytest.mark.skipif(native.library().run is None, reason="needs native kernels")


class Denoiser(nn.Module):
    """Convolutions with tables, attention with a condition, a skip concatenation."""

    def __init__(self, make_layer):
        super().__init__()

        def layer(*shape, seed, **options):
            return PackedLayer(make_layer(shape, 4, 8, steps=CALLS, seed=seed, **options))

        self.enter = layer(16, 4, 3, 3, seed=1, padding=(1, 1))
        self.norm = nn.GroupNorm(4, 16)
        self.time = layer(16, 8, seed=2)
        self.query, self.key, self.value = (layer(16, n, seed=n) for n in (16, 12, 12))
        self.leave = layer(4, 32, 3, 3, seed=5, padding=(1, 1))

    def forward(self, sample, timestep, condition):
        times = timestep.expand(len(sample))[:, None].float() * torch.arange(1, 9) / 100
        first = self.enter(sample)
        x = F.silu(self.norm(first)) + self.time(times.sin())[:, :, None, None]
        tokens = x.flatten(2).transpose(1, 2)
        query, key, value = self.query(tokens), self.key(condition), self.value(condition)
        query, key, value = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        mixed = F.layer_norm(tokens + mixed, (16,))
        x = x + mixed.transpose(1, 2).reshape(x.shape)
        return self.leave(torch.cat([x, first], dim=1))


@pytest.fixture
def denoiser(make_layer):
    clock = CallClock()
    network = Denoiser(make_layer).eval().requires_grad_(False)
    layers = [m for m in network.modules() if isinstance(m, PackedLayer)]
    fuse(network, layers)
    for layer in layers:
        layer.set_clock(clock)
    return network, clock


@torch.no_grad()
def sampled(network, clock, images):
    """Twenty calls with guidance; each is fed what came of the last one."""
    make = torch.Generator().manual_seed(images)
    sample = torch.randn(images, 4, 8, 8, generator=make)
    condition = torch.randn(2 * images, 5, 12, generator=make)
    for call in range(CALLS):
        with clock.at(call):
            both = network(torch.cat([sample, sample]), torch.tensor(1000 - 50 * call), condition)
        without, given = both.chunk(2)
        sample = 0.7 * sample + 0.3 * torch.tanh(without + 3 * (given - without))
    return sample


@pytest.mark.parametrize("images", [1, 2, 5])
def test_twenty_calls_equal_the_network_bit_for_bit(denoiser, images):
    network, clock = denoiser
    sampled(network, clock, 1)  # it learns what follows what
    step = RecordedStep(network, clock, exact=True)
    got, want = sampled(step, clock, images), sampled(network, clock, images)
    assert torch.equal(got, want)
    assert (step.told.replayed, step.told.eager) == (CALLS, 0)
    assert len(step._recordings) == 1
    assert LEARNING <= CALLS


def test_tables_matter(denoiser):
    """Entries of the tables differ, so a recording that reads one entry would be seen."""
    network, clock = denoiser
    step = RecordedStep(network, clock, exact=True)
    sample, condition = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    results = []
    with torch.no_grad():
        for call in (3, 4):
            with clock.at(call):
                results.append(step(sample, torch.tensor(500), condition))
    assert not torch.equal(*results)
    with torch.no_grad(), clock.at(CALLS), pytest.raises(Exception, match="20 calls"):
        step(sample, torch.tensor(500), condition)
    with torch.no_grad(), pytest.raises(Exception, match="nobody said"):
        step(sample, torch.tensor(500), condition)


def test_the_kernels_forms_agree_within_rounding(denoiser):
    network, clock = denoiser
    step = RecordedStep(network, clock)
    sample, condition = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    with torch.no_grad(), clock.at(7):
        found = step.agreement(sample, torch.tensor(350), condition)
        plan = step.plan(sample, torch.tensor(350), condition)
    assert (plan.native_pieces, plan.torch_pieces) == (1, 0)
    assert found.equal
    assert found.max_rel < 1e-6
