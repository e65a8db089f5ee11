"""What replaces torch's operations in a recorded step, against torch."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantarena.methods.core.kernels import native
from quantarena.methods.core.packed.step.recorded import RecordedStep

pytestmark = pytest.mark.skipif(native.library().run is None, reason="needs native kernels")


class Function(nn.Module):
    """A function of tensors as a network; constants are parameters."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        make = torch.Generator().manual_seed(9)
        self.wide = nn.Parameter(torch.randn(8, generator=make), requires_grad=False)
        self.table = nn.Parameter(torch.randn(11, 8, generator=make), requires_grad=False)

    def forward(self, *tensors):
        return self.function(self, *tensors)


def run(function, *tensors, pieces=0):
    """Torch's result and the recording's; the recording leaves ``pieces`` operations to torch."""
    step = RecordedStep(Function(function).eval())
    with torch.no_grad():
        plan = step.plan(*tensors)
        got, want = step(*tensors), step.network(*tensors)
    assert step.told.replayed == 1
    assert plan.torch_pieces == pieces
    assert (got.shape, got.stride(), got.dtype) == (want.shape, want.stride(), want.dtype)
    return got, want


def image(*shape, seed=0, last=False):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3
    return x.to(memory_format=torch.channels_last) if last else x


EXACT = {
    "add": lambda n, x, y: x + y,
    "add number": lambda n, x, y: x + 1,
    "number minus": lambda n, x, y: 1 - x,
    "minus": lambda n, x, y: x - y,
    "product": lambda n, x, y: x * y,
    "product with a number": lambda n, x, y: -9.2103 * x,
    "quotient": lambda n, x, y: x / y,
    "quotient by a number": lambda n, x, y: x / 3,
    "one and itself": lambda n, x, y: (x * 1 / 1.0) + x,
    "negative": lambda n, x, y: -x,
    "chain": lambda n, x, y: ((x * (y + 1) + x) / 2 - y) * x * x,
    "row": lambda n, x, y: x * n.wide + n.wide,
    "column": lambda n, x, y: x * y[:, :1] + y[:, :, :, :1],
    "channel": lambda n, x, y: x * y.mean(dim=(2, 3), keepdim=True),
    "concatenation": lambda n, x, y: torch.cat([x, y + 1, x], 1),
    "concatenation of columns": lambda n, x, y: torch.cat([x, y], -1) * 2,
    "transposed": lambda n, x, y: (x.transpose(1, 3) + 1).contiguous(),
    "permuted": lambda n, x, y: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]) * 2,
    "nearest": lambda n, x, y: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "nearest by size": lambda n, x, y: F.interpolate(x, size=[18, 24], mode="nearest"),
    "slices": lambda n, x, y: x[:, ::2] + y[:, 1::2],
    "in place": lambda n, x, y: (x + y).mul_(2).add_(y),
    "last": lambda n, x, y: (x + 1).contiguous(memory_format=torch.channels_last) + y,
    "flat": lambda n, x, y: (x * y).flatten(1) + 1,
    "constant": lambda n, x, y: x * torch.arange(8).float().div(7).exp().neg(),
}


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("name", EXACT)
def test_arithmetic_and_copies_equal_torch_bit_for_bit(name, last):
    torch_pieces = {"channel": 1}.get(name, 0)
    x, y = image(3, 4, 6, 8, last=last), image(3, 4, 6, 8, seed=1, last=last)
    got, want = run(EXACT[name], x, y, pieces=torch_pieces)
    assert torch.equal(got, want)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 255, 256, 257, 5000])
def test_any_size_and_offset(size):
    x = image(size + 3)[3:]
    got, want = run(lambda n, x: x * 2 + x, x)
    assert torch.equal(got, want)
    got, want = run(lambda n, x: x * 2, image(2 * size)[::2])
    assert torch.equal(got, want)


def test_numbers_that_are_not_finite():
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -1e38])
    got, want = run(lambda n, x: (x * 3 - x) / x, x)
    assert torch.equal(got.nan_to_num(7), want.nan_to_num(7))


def test_integers_become_floats():
    times = torch.tensor([0, 1, 999, 500])
    got, want = run(lambda n, t: t[:, None].float() * n.wide[None], times)
    assert torch.equal(got, want)
    got, want = run(lambda n, t: t * n.table[:4, 0], times)
    assert torch.equal(got, want)


def test_rows_of_a_table():
    index = torch.tensor([[3, 0], [10, 3]])
    got, want = run(lambda n, i: F.embedding(i, n.table), index)
    assert torch.equal(got, want)
    step = RecordedStep(Function(lambda n, i: F.embedding(i, n.table)).eval())
    with torch.no_grad():
        step(index)
        with pytest.raises(IndexError):
            step(index + 8)


WITHIN = {
    "silu": lambda n, x: F.silu(x),
    "gelu": lambda n, x: F.gelu(x),
    "gelu tanh": lambda n, x: F.gelu(x, approximate="tanh"),
    "sine": lambda n, x: torch.cat([(x * 50).sin(), (x * 50).cos()], -1),
    "exponential": lambda n, x: x.exp(),
    "layer norm": lambda n, x: F.layer_norm(x, (8,), n.wide, n.table[0]),
    "plain layer norm": lambda n, x: F.layer_norm(x, (6, 8), eps=1e-6) * 2,
}


@pytest.mark.parametrize("name", WITHIN)
def test_functions_are_within_rounding_of_torch(name):
    got, want = run(WITHIN[name], image(3, 4, 6, 8))
    assert float((got - want).abs().max() / want.abs().max()) < 1e-6


@pytest.mark.parametrize("queries", [1, 3, 4, 17])
@pytest.mark.parametrize("keys", [1, 8, 13, 64])
@pytest.mark.parametrize(("width", "values"), [(4, 4), (16, 16), (7, 12)])
def test_attention_is_within_rounding_of_torch(queries, keys, width, values):
    query = image(2, queries, 3, width).transpose(1, 2)
    key, value = image(2, 3, keys, width, seed=1), image(2, 3, keys, values, seed=2)

    def attend(n, q, k, v):
        return F.scaled_dot_product_attention(q, k, v) + 0

    step = RecordedStep(Function(attend).eval())
    with torch.no_grad():
        plan = step.plan(query, key, value)
        got, want = step(query, key, value), step.network(query, key, value)
    flash = any("flash" in str(s.sources[0].function) for s in plan.steps if hasattr(s, "sources"))
    assert flash == (plan.torch_pieces == 0), "torch takes other ways where widths differ"
    assert float((got - want).abs().max()) < 1e-5


def test_a_mask_and_a_factor():
    query, key, value = (image(2, 3, 9, 8, seed=seed) for seed in range(3))
    mask = image(2, 1, 9, 9, seed=5)
    mask[:, :, :, 4:] = -torch.inf
    got, want = run(
        lambda n, q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, scale=0.7),
        query,
        key,
        value,
        mask,
    )
    assert float((got - want).abs().max()) < 1e-5


def test_what_has_no_kernel_is_left_to_torch():
    x = image(3, 4, 6, 8)
    got, want = run(lambda n, x: (x + 1).cumsum(-1) * 2 + F.relu(x), x, pieces=2)
    assert torch.equal(got, want)


def test_two_threads_compute_the_same():
    x, y = image(16, 64, 32, 32), image(16, 64, 32, 32, seed=1)
    step = RecordedStep(Function(lambda n, x, y: (x + y) * y).eval())
    torch.set_num_threads(2)
    with torch.no_grad():
        assert torch.equal(step(x, y), step.network(x, y))
    torch.set_num_threads(1)
