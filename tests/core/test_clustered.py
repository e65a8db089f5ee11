import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.methods.core.clustered import (
    cluster_bounds,
    clustered_range,
    slice_bounds,
    spread_axis,
)
from quantarena.methods.core.quantizer import fake_quantize
from quantarena.methods.core.ranges import minmax_range


def sample(shape, seed, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def mse(x, params):
    return float((fake_quantize(x, params) - x).double().square().mean())


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple),
    axis=st.integers(-4, 3),
    bits=st.integers(1, 8),
    groups=st.integers(1, 9),
    symmetric=st.booleans(),
    power=st.sampled_from([1e-42, 1e-10, 1.0, 1e36]),
    seed=st.integers(0, 999),
)
def test_any_shape_axis_and_size(shape, axis, bits, groups, symmetric, power, seed):
    x = sample(shape, seed, power)
    axis = axis % len(shape)
    found = clustered_range(x, bits, axis=axis, groups=groups, symmetric=symmetric)
    count = found.groups.scale.numel()
    assert found.ids.shape == (shape[axis],)
    assert found.ids.unique().tolist() == list(range(count))
    assert count <= min(groups, shape[axis])
    params = found.params()
    assert params.scale.shape == tuple(n if i == axis else 1 for i, n in enumerate(shape))
    assert (params.scale > 0).all()
    assert torch.isfinite(fake_quantize(x, params)).all()
    # a group covers every member
    own = minmax_range(x, bits, axis=axis, symmetric=symmetric)
    assert (params.scale >= own.scale * (1 - 1e-6)).all()
    again = clustered_range(x, bits, axis=axis, groups=groups, symmetric=symmetric)
    assert torch.equal(found.ids, again.ids)


@pytest.mark.parametrize("axis", [0, 1])
def test_one_group_is_per_tensor_and_all_groups_are_per_slice(axis):
    x = sample((12, 9), 1) * torch.logspace(-1, 1, 9)
    one = clustered_range(x, 4, axis=axis, groups=1).params()
    plain = minmax_range(x, 4)
    assert (one.scale == plain.scale).all()
    assert (one.zero_point == plain.zero_point).all()
    each = clustered_range(x, 4, axis=axis, groups=99).params()
    assert torch.equal(each.scale, minmax_range(x, 4, axis=axis).scale)


def test_fewer_distinct_points_than_groups():
    x = torch.tensor([[-1.0, 2.0], [-1.0, 2.0], [0.0, 5.0], [-1.0, 2.0]])
    found = clustered_range(x, 8, axis=0, groups=8)
    assert found.ids.tolist() == [0, 0, 1, 0]
    constant = clustered_range(torch.full((5, 3), 2.5), 8, axis=1, groups=4)
    assert constant.ids.tolist() == [0, 0, 0]


@pytest.mark.parametrize("axis", [0, 1])
def test_planted_channels_of_30x_beat_per_tensor(axis):
    x = sample((64, 64), 2)
    loud = torch.tensor([3, 17, 40])
    x.index_copy_(axis, loud, x.index_select(axis, loud) * 30)
    found = clustered_range(x, 4, axis=axis, groups=4)
    quiet = torch.ones(64, dtype=torch.bool).index_fill_(0, loud, False)
    assert not set(found.ids[loud].tolist()) & set(found.ids[quiet].tolist())
    kept = quiet.nonzero()[:, 0]

    def quiet_error(params):
        return float((fake_quantize(x, params) - x).index_select(axis, kept).square().mean())

    assert quiet_error(found.params()) < 0.1 * quiet_error(minmax_range(x, 4))
    assert (2 + spread_axis(x)) == axis


@pytest.mark.parametrize("seed", range(5))
def test_single_outlier_is_alone(seed):
    x = sample((40, 50), seed)
    x[11] *= 30
    ids = clustered_range(x, 8, axis=0, groups=4, seed=seed).ids
    assert (ids == ids[11]).sum() == 1
    assert ids[11] == ids.max()  # groups are ordered by width


def test_error_falls_with_groups():
    x = sample((128, 64), 3) * torch.exp(sample((128, 1), 4) * 1.5)
    errors = [mse(x, clustered_range(x, 4, axis=0, groups=g).params()) for g in (1, 4, 16, 128)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.3 * errors[0]


def test_bounds_of_many_batches():
    batches = sample((5, 16, 20), 5)
    low = torch.stack([slice_bounds(b, 0)[0] for b in batches]).amin(0)
    high = torch.stack([slice_bounds(b, 0)[1] for b in batches]).amax(0)
    ids, groups = cluster_bounds(low, high, 8, 4)
    whole = clustered_range(batches, 8, axis=1, groups=4)
    assert torch.equal(ids, whole.ids)
    assert torch.equal(groups.scale, whole.groups.scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_infinities_are_refused_by_name(bad):
    x = torch.randn(4, 5)
    x[2, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        clustered_range(x, 8, axis=0)


def test_other_refusals():
    with pytest.raises(ValueError, match="empty"):
        clustered_range(torch.empty(0, 3), 8, axis=0)
    with pytest.raises(ValueError, match="groups"):
        clustered_range(torch.ones(2, 3), 8, axis=0, groups=0)


def test_ties_go_to_the_second_to_last_axis():
    assert spread_axis(torch.zeros(3, 3)) == -2
