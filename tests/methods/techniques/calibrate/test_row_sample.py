"""A sample is a sample: nothing is added to it that would make ranges wider."""

from itertools import pairwise

import pytest
import torch

from quantarena.methods.core.affine import fake_quantize
from quantarena.methods.techniques.calibrate.row_sample import RowSample, ranges_of
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range, shrink_range
from quantarena.methods.techniques.ranges.percentile import percentile_mse_range


def sampled(x, most, batches):
    sample = RowSample(most)
    for batch in batches:
        sample.add(x[:, batch])
    return sample


def normal(length, rows=1):
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(0))


def test_values_that_fit_are_the_sample():
    x = normal(1000, rows=3)
    sample = sampled(x, 1024, [slice(i, i + 250) for i in range(0, 1000, 250)])
    assert torch.equal(sample.values(), x)
    values, weights = sample.weighted()
    assert torch.equal(values, x)
    assert weights is None


@pytest.mark.parametrize("step", [1000, 7000, 100_000])
def test_a_sample_has_the_extremes_of_all_batches_once(step):
    x = normal(100_000, rows=2)
    sample = sampled(x, 4096, [slice(i, i + step) for i in range(0, 100_000, step)])
    values, (many, weights) = sample.values(), sample.weighted()
    assert torch.allclose(weights.sum(1), torch.tensor(100_000.0))
    assert torch.allclose((many * weights).sum(1) / 100_000, x.mean(1), atol=0.05)
    assert torch.equal(ranges_of([sample], minmax_range, 4).scale, minmax_range(x, 4, axis=0).scale)
    assert values.shape[0] == 2
    assert 4096 * 0.45 < values.shape[1] - 2 <= 4096
    assert torch.equal(values.amin(1), x.amin(1))
    assert torch.equal(values.amax(1), x.amax(1))


def test_every_value_has_the_same_chance_whatever_the_size_of_its_batch():
    edges = [0, 100, 30_000, 30_500, 90_000, 100_000]
    batches = [slice(a, b) for a, b in pairwise(edges)]
    values = sampled(torch.arange(100_000.0)[None], 8192, batches).values()[0, :-2]
    share = torch.histc(values, 10, 0, 100_000) / len(values)
    assert (share - 0.1).abs().max() < 0.015


@pytest.mark.parametrize("most", [100, 300, 1000])
@pytest.mark.parametrize("step", [1, 7, 100, 1000])
def test_batches_that_are_small_beside_the_total_have_their_share(step, most):
    batches = [slice(i, i + step) for i in range(0, 3000, step)]
    x = torch.arange(3000.0)[None]
    values = sampled(x, most, batches).values()[0, :-2]
    assert len(values) <= most
    # halved samples are 46 or 187 or 750 values on average, give or take what is drawn
    assert len(values) > 0.3 * most
    deviation = 3000 / 12**0.5 / len(values) ** 0.5  # of a fair sample's mean
    assert abs(values.mean() - 1499.5) < 3 * deviation
    thirds = torch.histc(values, 3, 0, 3000) / len(values)
    assert (thirds - 1 / 3).abs().max() < 3 * (2 / 9 / len(values)) ** 0.5
    assert torch.equal(sampled(x, most, batches).values()[0, :-2], values)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize("search", [mse_range, shrink_range, percentile_mse_range])
def test_the_range_of_a_sample_is_as_good_as_that_of_all_values(search, power, bits):
    x = normal(1 << 19) ** power
    sample = sampled(x, 1 << 14, [slice(i, i + 4096) for i in range(0, x.shape[1], 4096)])
    norm = 2.0 if search is percentile_mse_range else 2.4
    error, least = (
        (fake_quantize(x, found) - x).abs().pow(norm).mean()
        for found in (ranges_of([sample], search, bits), search(x, bits, axis=0))
    )
    assert error < 1.05 * least


def test_ties_at_the_end_of_a_tail_keep_their_weight():
    x = normal(100_000).relu()
    values, weights = sampled(x, 4096, [slice(0, 50_000), slice(50_000, 100_000)]).weighted()
    assert float(weights[values == 0].sum()) == pytest.approx(50_000, rel=0.05)


def test_a_search_without_weights_gets_the_sample():
    def search(x, bits, *, axis=None, symmetric=False):
        assert 32 <= x.shape[1] <= 64 + 2
        return minmax_range(x, bits, axis=axis, symmetric=symmetric)

    x = normal(1000)
    params = ranges_of([sampled(x, 64, [slice(0, 1000)])], search, 4)
    assert torch.equal(params.scale, minmax_range(x, 4, axis=0).scale)


def test_samples_that_are_pooled_are_one():
    x = normal(60_000) ** 3
    halves = [sampled(part, 4096, [slice(0, 30_000)]) for part in x.chunk(2, dim=1)]
    for search in (minmax_range, mse_range):
        found, wanted = ranges_of(halves, search, 4), search(x, 4, axis=0)
        assert torch.allclose(found.scale, wanted.scale, rtol=0.05)
    few = [sampled(part, 40_000, [slice(0, 30_000)]) for part in x.chunk(2, dim=1)]
    assert torch.equal(ranges_of(few, mse_range, 4).scale, mse_range(x, 4, axis=0).scale)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_single_bad_value_is_found_in_whichever_batch_it_is(value):
    for place in (5, 99_999):
        x = normal(100_000)
        x[0, place] = value
        batches = [slice(i, i + 10_000) for i in range(0, 100_000, 10_000)]
        with pytest.raises(ValueError, match="NaN"):
            ranges_of([sampled(x, 64, batches)], minmax_range, 4)


@pytest.mark.parametrize("rows", [1, 3])
def test_tails_are_the_exact_ends_of_all_batches(rows):
    x = normal(50_000, rows).mul(8).round()  # with many ties
    sample = sampled(x, 64, [slice(i, i + 7000) for i in range(0, 50_000, 7000)])
    values, weights = sample.weighted()
    tail = values[:, -1024:]
    assert torch.equal(tail[:, :512], x.sort(dim=1).values[:, :512])
    assert torch.equal(tail[:, 512:].sort(dim=1).values, x.sort(dim=1).values[:, -512:])
    assert bool((weights[:, -1024:] == 1).all())


def test_a_sample_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no batch"):
        RowSample(8).values()
