import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.methods.core.quantizer import fake_quantize
from quantarena.methods.core.ranges import RANGES, minmax_range, mse_range


def loss(x, params, norm=2.4):
    return (fake_quantize(x, params) - x).abs().pow(norm)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(1, 8),
    symmetric=st.booleans(),
    tail=st.floats(1, 50),
)
def test_mse_is_never_worse_than_minmax_in_its_own_norm(seed, bits, symmetric, tail):
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed))
    x[:, 0] *= tail
    searched = loss(x, mse_range(x, bits, axis=0, symmetric=symmetric)).mean(1)
    plain = loss(x, minmax_range(x, bits, axis=0, symmetric=symmetric)).mean(1)
    assert (searched <= plain + 1e-12).all()


def test_mse_clips_outliers():
    x = torch.randn(4096)
    x[0] = 12.0
    searched, plain = mse_range(x, 4), minmax_range(x, 4)
    assert searched.scale < 0.7 * plain.scale
    assert loss(x, searched).mean() < 0.5 * loss(x, plain).mean()


@pytest.mark.parametrize("search", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 3, 3)])
def test_channels_at_once_equal_a_loop(search, symmetric, shape):
    x = torch.randn(shape) * torch.logspace(-2, 2, 5).reshape(-1, *[1] * (len(shape) - 1))
    together = search(x, 4, axis=0, symmetric=symmetric)
    for index in range(5):
        alone = search(x[index], 4, symmetric=symmetric)
        assert torch.equal(together.scale[index].reshape(()), alone.scale.reshape(()))
        assert torch.equal(together.zero_point[index].reshape(()), alone.zero_point.reshape(()))
    assert together.scale.shape == (5, *[1] * (len(shape) - 1))


@pytest.mark.parametrize("search", RANGES.values(), ids=RANGES)
def test_last_axis(search):
    x = torch.randn(6, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0])
    params = search(x, 8, axis=1)
    assert params.scale.shape == (1, 4)
    assert params.scale[0, 1] > 3 * params.scale[0, 0]


@pytest.mark.parametrize("search", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("axis", [None, 0])
def test_empty_tensor_is_an_error(search, axis):
    with pytest.raises(ValueError, match="empty"):
        search(torch.empty(0, 3), 4, axis=axis)


@pytest.mark.parametrize("search", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_an_error(search, bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        search(torch.tensor([1.0, bad, 2.0]), 4)


@pytest.mark.parametrize("search", RANGES.values(), ids=RANGES)
def test_zero_channel(search):
    x = torch.stack([torch.zeros(9), torch.randn(9)])
    params = search(x, 4, axis=0)
    assert torch.isfinite(params.scale).all()
    assert (fake_quantize(x, params)[0] == 0).all()


@pytest.mark.parametrize("search", RANGES.values(), ids=RANGES)
def test_half_precision_input_gives_float32_ranges(search):
    assert search(torch.randn(16).half(), 4).scale.dtype == torch.float32
