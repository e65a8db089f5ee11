"""Which channels may be rescaled, on small networks whose answer is known, and that it is exact."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantarena.bench.workloads.outliers.draw import octaves
from quantarena.bench.workloads.outliers.follow import follow
from quantarena.bench.workloads.outliers.plant import plant
from quantarena.bench.workloads.outliers.sites import Site, SiteKind, sites_of
from quantarena.bench.workloads.outliers.ties import FIXED, Ties

WIDTH = 16


class Network(nn.Module):
    """Layers ``one``, ``two``, ``three`` and a norm, and a forward that a test gives."""

    def __init__(self, forward):
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm, self.plain = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.square = nn.LayerNorm((8, WIDTH))
        self.wide, self.last = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 4)
        self.conv, self.deep = nn.Conv2d(4, WIDTH, 3, padding=1), nn.Conv2d(4, WIDTH, 1)
        self.join = nn.Conv2d(2 * WIDTH, 4, 1)
        self.grouped = nn.Conv2d(WIDTH, WIDTH, 3, groups=4)
        self.group_norm = nn.GroupNorm(8, 2 * WIDTH)
        self.table = nn.Parameter(torch.randn(WIDTH))
        self.run = forward
        torch.manual_seed(1)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x):
        return self.run(self, x)


def adaln(net, x):
    gain, shift = net.wide(F.silu(x.mean(1))).chunk(2, dim=-1)
    return net.last(net.plain(x) * (1 + gain[:, None]) + shift[:, None])


def adaln_of_a_table(net, x):
    gain, shift = (net.table + net.wide(F.silu(x.mean(1))).unflatten(-1, (2, -1))).unbind(1)
    return net.last(net.plain(x) * (1 + gain[:, None]) + shift[:, None])


def gain_used_twice(net, x):
    gain, shift = net.wide(F.silu(x.mean(1))).chunk(2, dim=-1)
    kept = net.last(net.plain(x) * (1 + gain[:, None]) + shift[:, None])
    return kept + gain.mean()


def one_minus(net, x):
    gain = net.one(F.silu(x.mean(1)))
    return net.last(net.plain(x) * (1 + -gain[:, None]))


def heads(x):
    return x.unflatten(-1, (4, -1)).transpose(1, 2)


def attention(net, x):
    q, k, v = heads(net.one(x)), heads(net.two(x)), heads(net.three(x))
    return net.last(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def plain_attention(net, x):
    q, k, v = heads(net.one(x)), heads(net.two(x)), heads(net.three(x))
    return net.last((torch.softmax(q @ k.mT / 2, -1) @ v).transpose(1, 2).flatten(2))


def rotated(x):
    a, b = x.chunk(2, dim=-1)
    return x * 0.6 + torch.cat((-b, a), dim=-1) * torch.full((x.shape[-1],), 0.8)


def rotary_attention(net, x):
    q, k = heads(rotated(net.one(x))), heads(rotated(net.two(x)))
    return net.last(F.scaled_dot_product_attention(q, k, heads(x)).transpose(1, 2).flatten(2))


def geglu(net, x):
    hidden, gate = net.wide(x).chunk(2, dim=-1)
    return net.last(hidden * F.gelu(gate))


def skip(net, x):
    x = x.reshape(2, 4, 8, -1)
    return net.join(torch.cat([net.deep(x), net.conv(x)], dim=1))


def normed_skip(net, x):
    x = x.reshape(2, 4, 8, -1)
    joined = torch.cat([net.deep(x), net.conv(x)], dim=1)
    return net.join(joined) + F.silu(net.group_norm(joined))[:, :4]


CASES = {
    # name: (network, free classes that a layer reads, free classes of scores)
    "norm": (lambda net, x: net.last(net.norm(x)), WIDTH, 0),
    "norm over two axes": (lambda net, x: net.last(net.square(x)), 0, 0),
    "norm without affine": (lambda net, x: net.last(net.plain(x)), 0, 0),
    "two readers": (lambda net, x: net.last(net.norm(x)) + net.two(net.norm(x))[..., :4], WIDTH, 0),
    "layer": (lambda net, x: net.last(net.one(x)), WIDTH, 0),
    "relu": (lambda net, x: net.last(F.relu(net.one(x))), WIDTH, 0),
    "silu": (lambda net, x: net.last(F.silu(net.one(x))), 0, 0),
    "residual": (lambda net, x: net.last(x + net.one(x)), 0, 0),
    "sum": (lambda net, x: net.last(net.two(x) + net.one(x)), WIDTH, 0),
    "bias outside": (lambda net, x: net.last(net.one(x) + net.table), 0, 0),
    "layer scale": (lambda net, x: net.last(net.one(x) * net.table), WIDTH, 0),
    "product": (lambda net, x: net.last(net.one(x) * net.two(x)), WIDTH, 0),
    "output too": (lambda net, x: (net.last(net.one(x)), net.one(x)), 0, 0),
    "mean": (lambda net, x: net.last(net.one(x)) + net.one(x).mean(), 0, 0),
    "adaln": (adaln, WIDTH, 0),
    "adaln of a table": (adaln_of_a_table, 0, 0),
    "gain used twice": (gain_used_twice, 0, 0),
    "one minus gain": (one_minus, 0, 0),
    "attention": (attention, WIDTH, WIDTH),
    "plain attention": (plain_attention, WIDTH, WIDTH),
    "rotary attention": (rotary_attention, 0, WIDTH // 2),
    "geglu": (geglu, WIDTH, 0),
    "skip": (skip, 2 * WIDTH, 0),
    "normed skip": (normed_skip, 8, 0),
    "grouped": (lambda net, x: net.grouped(net.conv(x.reshape(2, 4, 8, -1))), WIDTH, 0),
    "padded": (
        lambda net, x: net.join(F.pad(net.conv(x.reshape(2, 4, 8, -1)), (1, 1)).repeat(1, 2, 1, 1)),
        WIDTH,
        0,
    ),
    "padded with ones": (
        lambda net, x: net.grouped(F.pad(net.conv(x.reshape(2, 4, 8, -1)), (1, 1), value=1.0)),
        0,
        0,
    ),
    "twice": (lambda net, x: net.last(net.one(net.one(x))), 0, 0),
    "in place": (lambda net, x: net.last(net.one(x).mul_(2).add_(net.two(x))), WIDTH, 0),
}


@pytest.fixture(params=CASES)
def case(request):
    run, free, scores = CASES[request.param]
    return Network(run).eval(), torch.randn(2, 8, WIDTH), free, scores


def test_the_free_channels_are_those_that_the_network_has(case):
    network, x, free, scores = case
    sites = sites_of(follow(network, lambda: network(x)))
    found = {c for s in sites if s.kind in (SiteKind.CHANNELS, SiteKind.STREAM) for c in s.classes}
    assert len(found) == free
    assert sum(len(s.classes) for s in sites if s.kind is SiteKind.SCORES) == scores


def test_rescaling_keeps_the_function(case):
    network, x, free, scores = case
    original = copy.deepcopy(network)
    done = plant(network, lambda: network(x), 4.0)
    other = torch.randn(2, 8, WIDTH, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        pairs = zip(_all(network(other)), _all(original(other)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)
    changed = any(
        not torch.equal(a, b)
        for a, b in zip(network.parameters(), original.parameters(), strict=True)
    )
    assert changed == bool(done.channels) == bool(free + scores) == bool(done.sites)


def _all(output):
    return output if isinstance(output, tuple) else (output,)


def test_shared_weights_are_left_alone():
    network = Network(lambda net, x: net.last(net.two(net.one(x)))).eval()
    network.two.weight = network.one.weight
    assert sites_of(follow(network, lambda: network(torch.randn(2, 3, WIDTH)))) == ()


def test_a_network_that_uses_its_weights_in_secret_is_refused():
    network = Network(lambda net, x: net.last(net.norm(x)) + float(net.last.weight.sum())).eval()
    from quantarena.bench.errors import BrokenModel

    with pytest.raises(BrokenModel, match="moves the output of Network"):
        plant(network, lambda: network(torch.randn(2, 3, WIDTH)), 4.0)


def test_the_deep_half_is_the_part_that_is_never_a_skip():
    network = Network(normed_skip).eval()
    sites = sites_of(follow(network, lambda: network(torch.randn(2, 8, WIDTH))))
    halves = [site for site in sites if site.kind is SiteKind.HALF]
    assert [len(site.classes) for site in halves] == [4]  # half of the norm's eight groups


def test_ties_follow_signs():
    ties = Ties()
    a, b, c, d = ties.fresh(4).tolist()
    ties.tie(a, b, -1)
    ties.tie(b, c, -1)
    assert ties.find(a) == ties.find(c)
    assert ties.find(a)[0] == ties.find(b)[0]
    assert ties.find(a)[1] == -ties.find(b)[1]
    ties.tie(d, d, -1)  # a factor that is its own inverse
    assert not ties.free(d)
    assert ties.free(a)
    ties.tie(a, b, 1)
    assert ties.find(c)[0] == FIXED


def site(count, kind=SiteKind.CHANNELS, reader="layer"):
    return Site(kind, (reader,), tuple(range(1, count + 1)))


def test_the_distribution_is_as_stated():
    drawn = octaves(site(320), 4.0)
    up = [k for k in drawn.values() if k > 0]
    down = [k for k in drawn.values() if k < 0]
    assert len(up) == len(down) == 10
    assert min(up) >= 4
    assert max(up) <= 7
    assert len(set(up)) > 1
    assert min(down) >= -4
    assert max(down) <= -2
    assert octaves(site(7), 4.0) == {}  # too few to call one an outlier
    assert set(octaves(site(64, SiteKind.STREAM), 4.0).values()) <= {4, 5, 6, 7}
    assert octaves(site(6, SiteKind.HALF), 4.0) == dict.fromkeys(range(1, 7), 3)
    assert octaves(site(320), 0.0) == {}


def test_the_same_channels_are_outliers_at_every_strength():
    assert octaves(site(64), 2.0).keys() == octaves(site(64), 4.0).keys()
    assert octaves(site(64), 4.0) == octaves(site(64), 4.0)
    assert octaves(site(64), 4.0).keys() != octaves(site(64, reader="other"), 4.0).keys()
