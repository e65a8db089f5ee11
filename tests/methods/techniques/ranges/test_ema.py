import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.methods.core.affine import fake_quantize
from quantarena.methods.techniques.ranges.ema import EmaRange, ema_range


@settings(max_examples=25, deadline=None)
@given(
    batches=st.integers(1, 8),
    momentum=st.sampled_from([0.0, 0.9, 0.95]),
    axis=st.sampled_from([None, 1, 2, -1]),
    symmetric=st.booleans(),
    seed=st.integers(0, 999),
)
def test_running_range_closed_form_equals_updates(sample, batches, momentum, axis, symmetric, seed):
    x = sample((batches, 3, 4), seed)
    running = EmaRange(momentum)
    dims = (0, 1) if axis is None else (0,) if axis % 3 == 2 else (1,)
    for batch in x:
        before = running
        running = running.update(batch.amin(dims), batch.amax(dims))
        assert before is not running
    got = ema_range(x, 8, axis=axis, symmetric=symmetric, momentum=momentum)
    want = running.params(8, symmetric=symmetric)
    assert torch.allclose(got.scale.flatten(), want.scale.flatten(), rtol=1e-4)
    assert ((got.zero_point.flatten() - want.zero_point.flatten()).abs() <= 1).all()
    assert fake_quantize(x, got).shape == x.shape


def test_running_range_edges():
    assert ema_range(torch.tensor([1.0, 3.0]), 8, momentum=0.5).scale * 255 == pytest.approx(2.0)
    assert ema_range(torch.ones(2, 3), 8, axis=1).scale.shape == (1, 3)
    with pytest.raises(ValueError, match="axis 0"):
        ema_range(torch.ones(2, 3), 8, axis=0)
    with pytest.raises(ValueError, match="no batch"):
        EmaRange().params(8)
    with pytest.raises(ValueError, match="NaN or infinity"):
        EmaRange().update(torch.tensor(0.0), torch.tensor(float("inf")))
