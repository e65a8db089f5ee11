import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.methods.core.affine import fake_quantize
from quantarena.methods.core.quantizers.group_views import (
    group_range,
    grouped,
    leading_range,
    ungrouped,
)
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.named import SEARCHES

ALL = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)


def sample(shape, seed, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    axis=st.integers(-3, 3),
    groups=st.integers(1, 3),
    group=st.sampled_from([1, 2, 64]),
)
def test_groups_are_a_view_and_come_back(shape, axis, groups, group):
    axis = axis % len(shape) if axis >= 0 else axis
    axis = max(axis, -len(shape))
    shape[axis] = groups * group
    x = sample(shape, 0)
    view = grouped(x, group, axis=axis)
    assert view.data_ptr() == x.data_ptr()
    assert torch.equal(ungrouped(view, axis=axis), x)


@ALL
def test_group_ranges_equal_a_loop(search):
    x = sample((3, 128, 2, 2), 6) * torch.logspace(-1, 1, 128).reshape(1, -1, 1, 1)
    params = group_range(search, x, 4, 64)
    assert params.scale.shape == (3, 2, 1, 1, 1)
    alone = search(x[1, 64:], 4)
    assert torch.allclose(params.scale[1, 1].flatten(), alone.scale.flatten(), rtol=1e-6)
    assert fake_quantize(grouped(x, 64), params).shape == (3, 2, 64, 2, 2)
    with pytest.raises(ValueError, match="do not divide"):
        group_range(search, x, 4, 48)


def test_planted_group_beats_per_channel():
    x = sample((8, 256), 7)
    x[:, 64:128] *= 50
    fine = fake_quantize(grouped(x, 64), group_range(minmax_range, x, 4, 64)).flatten(1)
    coarse = fake_quantize(x, minmax_range(x, 4, axis=0))
    quiet = torch.arange(256) < 64
    better, worse = (float((y - x)[:, quiet].square().mean()) for y in (fine, coarse))
    assert better < 0.02 * worse


def test_step_and_head_tables():
    x = sample((4, 2, 6, 6), 9)
    assert leading_range(minmax_range, x, 8, 2).scale.shape == (4, 2, 1, 1)
    for kept in (0, 4):
        with pytest.raises(ValueError, match="keep"):
            leading_range(minmax_range, x, 8, kept)
