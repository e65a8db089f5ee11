import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.float_ops import Activation
from quantarena.methods.core.packed.nodes.fusion import PATIENCE, FusedGroupNorm, Watched, fuse
from quantarena.methods.core.packed.nodes.leaf import PackedLayer

pytestmark = pytest.mark.skipif(native.library().norm is None, reason="needs native kernels")


class Net(nn.Module):
    """Normalization, activation and gate in the ways that networks write them."""

    def __init__(self, conv, linear, tail):
        super().__init__()
        self.norm, self.act, self.drop = nn.GroupNorm(4, 8), nn.SiLU(), nn.Dropout(0.1)
        nn.init.normal_(self.norm.weight)
        self.conv, self.linear, self.tail = conv, linear, tail

    def forward(self, x):
        h = self.conv(self.act(self.norm(x)))
        tokens = h.flatten(2).transpose(1, 2)
        value, gate = self.linear(tokens).chunk(2, dim=-1)
        return self.tail(self.drop(value * F.gelu(gate))), h


@pytest.fixture
def pair(make_layer):
    """A network as it is and a fused copy."""
    layers = [
        PackedLayer(make_layer((16, 8, 3, 3), 4, 8, padding=(1, 1))),
        PackedLayer(make_layer((24, 16), 4, 8)),
        PackedLayer(make_layer((5, 12), 4, 8)),
    ]
    net = Net(*layers).eval().requires_grad_(False)
    other = copy.deepcopy(net)
    fuse(other, [other.conv, other.linear, other.tail])
    return net, other


def test_fused_network_is_the_same_function(pair, make_input):
    net, fused = pair
    for _ in range(3):
        x = make_input((2, 8, 6, 6))
        for got, want in zip(fused(x), net(x), strict=True):
            assert type(got) is torch.Tensor
            # a code may fall the other way where a rounding tie is decided by float noise
            assert float((got - want).abs().mean()) <= 1e-3 * float(want.abs().mean())
    assert fused.norm.follower.activation is Activation.SILU
    assert fused.linear.follower.activation is Activation.GELU
    assert fused.conv.writes_last


def test_what_came_next_is_learned_and_unlearned():
    norm = nn.GroupNorm(2, 4).requires_grad_(False)
    module = nn.Sequential(norm)
    fuse(module, [])
    x = torch.randn(3, 4, 5)
    want = F.group_norm(x, 2)
    assert torch.allclose(F.silu(norm(x)), F.silu(want), atol=1e-6)
    fused = norm(x)
    assert fused.done is not None  # computed with the activation
    assert torch.allclose(F.silu(fused), F.silu(want), atol=1e-6)
    for use in (
        lambda t: t + 1,
        lambda t: F.gelu(t),
        lambda t: t.sum(),
        lambda t: t[1:],
        torch.exp,
    ):
        norm.follower.hit(Activation.SILU)
        assert torch.allclose(use(norm(x)), use(want), atol=1e-5)
        assert torch.allclose(use(norm(x)), use(want), atol=1e-5)
    for _ in range(PATIENCE):
        assert torch.allclose(norm(x) * 2, want * 2, atol=1e-5)
    assert type(norm(x)) is torch.Tensor


def test_watched_tensor_used_twice_gives_both_values():
    norm = nn.GroupNorm(2, 4).requires_grad_(False)
    fuse(nn.Sequential(norm), [])
    x = torch.randn(3, 4, 5)
    want = F.group_norm(x, 2)
    for _ in range(3):
        y = norm(x)
        assert torch.allclose(F.silu(y), F.silu(want), atol=1e-6)
        assert torch.allclose(y - 1, want - 1, atol=1e-5)
        assert y.shape == x.shape


def test_changed_input_is_noticed():
    norm = nn.GroupNorm(2, 4).requires_grad_(False)
    fuse(nn.Sequential(norm), [])
    x = torch.randn(3, 4, 5)
    F.silu(norm(x))
    y = norm(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="changed before its result was used"):
        y + 1


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_activation_without_a_gate(make_layer, make_input, approximate):
    layer = PackedLayer(make_layer((24, 16), 4, 8))
    x = make_input((3, 16))
    want = F.gelu(layer(x), approximate=approximate)
    fuse(nn.Sequential(layer), [layer])
    for _ in range(2):
        pending = F.gelu(layer(x), approximate=approximate)
        assert type(pending) is Watched
        assert torch.allclose(pending.clone(), want, atol=1e-5)
        broadcast = F.gelu(layer(x), approximate=approximate) * torch.tensor([2.0])
        assert torch.allclose(broadcast, want * 2, atol=1e-5)


def test_only_the_plain_class_is_changed():
    class Special(nn.GroupNorm):
        def forward(self, x):
            return x

    module = nn.Sequential(Special(2, 4), nn.GroupNorm(2, 4))
    fuse(module, [])
    assert type(module[0]) is Special
    assert type(module[1]) is FusedGroupNorm


def test_outputs_of_a_network_are_ordinary_tensors(make_layer, make_input):
    class Out(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x, form):
            y = self.layer(x)
            return {"dict": {"sample": y}, "tuple": (y, [y]), "plain": y}[form]

    net = Out(PackedLayer(make_layer((24, 16), 4, 8)))
    fuse(net, [net.layer])
    x = make_input((3, 16))
    assert type(net(x, "plain")) is torch.Tensor
    assert type(net(x, "dict")["sample"]) is torch.Tensor
    found = net(x, "tuple")
    assert type(found[0]) is type(found[1][0]) is torch.Tensor


@pytest.mark.parametrize("shape", [(2, 12, 4, 4), (3, 12, 9, 5), (1, 12, 1, 7)])
@pytest.mark.parametrize(
    "geometry", [{}, {"padding": (1, 1)}, {"padding": (1, 1), "stride": (2, 2)}]
)
def test_channels_last_output_has_the_same_integers(
    make_layer, make_input, library, shape, geometry
):
    kernel = (3, 3) if geometry else (1, 1)
    layer = make_layer((20, 12, *kernel), 4, 8, asymmetric=True, multiplier=True, **geometry)
    module, other = PackedLayer(layer, library), PackedLayer(layer, library)
    other.writes_last = True
    x = make_input(shape)
    assert torch.equal(module.accumulators(x), other.accumulators(x))
    got = other(x)
    assert torch.allclose(got, module(x), rtol=1e-6, atol=1e-6 * float(got.abs().max()))
    if library.run is not None:
        assert got.is_contiguous(memory_format=torch.channels_last)
