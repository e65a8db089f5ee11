import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.methods.core.affine import QuantParams, fake_quantize
from quantarena.methods.techniques.ranges.rows import condensed, losses_of, minmax_rows


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    bits=st.integers(1, 8),
    norm=st.sampled_from([0.5, 1.0, 2.0, 2.4, 4.0]),
    power=st.sampled_from([1e-20, 1.0, 1e30]),
)
def test_losses_of_candidates_are_those_of_fake_quantization(sample, seed, bits, norm, power):
    x = sample((3, 70), seed, power)
    first = minmax_rows(x, bits, False)
    scale = torch.cat([first.scale, first.scale * 0.7], dim=1)
    grid = QuantParams(scale, first.zero_point.expand(3, 2), bits)
    size = x.double().abs().amax(1)
    for index in range(2):
        one = QuantParams(grid.scale[:, index : index + 1], grid.zero_point[:, :1], bits)
        error = (fake_quantize(x, one) - x).double() / size[:, None]
        want = error.abs().pow(norm).mean(1).float()
        assert torch.allclose(losses_of(x, grid, norm)[:, index], want, rtol=1e-3, atol=1e-9)


def test_counted_values_are_repeated_values(sample):
    x = sample((2, 50), 3)
    counts = torch.randint(1, 5, (2, 50), generator=torch.Generator().manual_seed(0)).float()
    for row, count in zip(x, counts, strict=True):
        repeated = row.repeat_interleave(count.long()).unsqueeze(0)
        plain = minmax_rows(repeated, 3, False)
        once = losses_of(row.unsqueeze(0), plain, 2.4, count.unsqueeze(0))
        assert torch.allclose(once / count.sum(), losses_of(repeated, plain, 2.4), rtol=1e-5)


@pytest.mark.parametrize("power", [1e-30, 1.0, 1e38])
def test_condensed_rows_count_all_values_and_keep_the_sum(sample, power):
    x = sample((2, 20_000), 4).clamp(-3, 3) * power
    values, counts = condensed(x)
    assert values.shape == counts.shape == (2, 8192)
    assert (counts.sum(1) == 20_000).all()
    assert torch.allclose((values.double() * counts).sum(1), x.double().sum(1), rtol=1e-4)
    short, none = condensed(x[:, :100])
    assert none is None
    assert torch.equal(short, x[:, :100])
