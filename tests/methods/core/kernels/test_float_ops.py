import pytest
import torch
from torch.nn import functional as F

from quantarena.methods.core.kernels import float_ops
from quantarena.methods.core.kernels.float_ops import Activation
from quantarena.methods.core.rotation import rotate

REFERENCE = {
    Activation.PLAIN: lambda x: x,
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
}
SHAPES = [((2, 64, 8, 8), 32), ((3, 40, 3, 5), 4), ((1, 6, 7), 3), ((5, 12), 2), ((2, 9, 1, 1), 9)]


def close(found, want):
    return float((found - want).abs().max()) <= 2e-6 * float(want.abs().max()) + 1e-9


@pytest.fixture
def floats(library):
    if library.norm is None:
        pytest.skip("needs native kernels")
    return library


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize("last", [False, True])
def test_group_normalization_is_that_of_torch(floats, shape, groups, activation, last):
    make = torch.Generator().manual_seed(len(shape))
    x = torch.randn(shape, generator=make) * 3 + 5
    weight, bias = torch.randn(2, shape[1], generator=make).unbind()
    if last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    for w, b in ((weight, bias), (None, None)):
        found = float_ops.normalize(floats, x, groups, w, b, 1e-5, activation)
        want = F.group_norm(
            x.double(), groups, *(None if p is None else p.double() for p in (w, b)), 1e-5
        )
        assert close(found, REFERENCE[activation](want))
        assert found.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("activation", list(Activation)[1:])
@pytest.mark.parametrize("shape", [(4, 3, 26), (2, 64, 512), (7,), (1, 1), (0, 4)])
@pytest.mark.parametrize("gated", [False, True])
def test_activations_are_those_of_torch(floats, activation, shape, gated):
    whole = torch.randn(*shape[:-1], 2 * shape[-1], generator=torch.Generator().manual_seed(1)) * 5
    gate, x = whole.chunk(2, dim=-1)
    found = float_ops.activate(floats, x, activation, gate if gated else None)
    want = REFERENCE[activation](x.double()) * (gate.double() if gated else 1)
    assert found.shape == want.shape
    assert not want.numel() or close(found, want)


@pytest.mark.parametrize("activation", list(Activation)[1:])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("place", [0, 5, 9])
def test_infinities_give_the_limits_of_the_functions(floats, activation, gated, place):
    """What torch gives there depends on the CPU: NaN by some of its vector units."""
    x = torch.ones(11)
    x[place] = torch.inf
    x[(place + 1) % 11] = -torch.inf
    found = float_ops.activate(floats, x, activation, torch.full((11,), 0.5) if gated else None)
    assert found[place] == torch.inf
    assert found[(place + 1) % 11] == 0
    assert torch.isfinite(found).sum() == 10


@pytest.mark.parametrize("activation", list(Activation)[1:])
def test_nan_stays_and_large_values_go_to_the_identity_or_to_zero(floats, activation):
    x = torch.tensor([torch.nan, 1e30, 3e38, 88.5, -1e30, -88.5, -104.0, 0.0, -0.0])
    found = float_ops.activate(floats, x, activation)
    assert torch.isnan(found[0])
    assert torch.equal(found[1:4], x[1:4])
    assert torch.allclose(found[4:], torch.zeros(5), rtol=0, atol=1e-6)


def test_other_inputs_are_left_to_torch(floats):
    x = torch.randn(2, 4, 3)
    assert float_ops.activate(floats, x.double(), Activation.SILU) is None
    assert float_ops.activate(floats, x.transpose(1, 2), Activation.SILU) is None
    assert float_ops.activate(floats, x, Activation.SILU, torch.ones(3)) is None
    assert float_ops.activate(floats, x.requires_grad_(), Activation.SILU) is None
    assert float_ops.normalize(floats, x.double(), 2, None, None, 1e-5) is None
    assert float_ops.normalize(floats, torch.randn(2, 5), 2, None, None, 1e-5) is None


@pytest.mark.parametrize(("shape", "width"), [((3, 5, 24), 8), ((7, 33), 33), ((2, 6), 1)])
def test_extremes_are_those_of_torch(floats, shape, width):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    low, high = float_ops.extremes(floats, x, width)
    view = x.unflatten(-1, (-1, width))
    assert torch.equal(low, view.amin(-1))
    assert torch.equal(high, view.amax(-1))
    for bad in (torch.nan, torch.inf, -torch.inf):
        x.view(-1)[-1] = bad
        low, high = float_ops.extremes(floats, x, width)
        finite = torch.isfinite(low) & torch.isfinite(high)
        assert not finite.view(-1)[-1]
        assert int(finite.sum()) == finite.numel() - 1


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 12, 24, 40, 64, 96, 192, 1152])
@pytest.mark.parametrize("rows", [0, 1, 37])
def test_rotations_are_those_of_torch_bit_for_bit(floats, width, rows):
    make = torch.Generator().manual_seed(width)
    x, factor = torch.randn(2, rows, width, generator=make), torch.randn(width, generator=make)
    assert torch.equal(float_ops.rotated(floats, x, factor), rotate(x * factor))
    turned = x.transpose(0, 1)
    assert torch.equal(float_ops.rotated(floats, turned, factor), rotate(turned * factor))
    learned = x.clone().requires_grad_()
    assert torch.equal(float_ops.rotated(floats, learned, factor), rotate(x * factor))
    float_ops.rotated(floats, learned, factor).sum().backward()
    assert learned.grad.shape == x.shape
    assert float_ops.rotated(floats, x.double(), factor).dtype is torch.float64
