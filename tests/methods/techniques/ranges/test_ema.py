import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.methods.core.affine import affine_params
from quantarena.methods.techniques.ranges.ema import EmaRange


@settings(max_examples=25, deadline=None)
@given(
    batches=st.integers(1, 8), momentum=st.sampled_from([0.0, 0.9, 0.95]), seed=st.integers(0, 999)
)
def test_running_range_equals_its_closed_form(sample, batches, momentum, seed):
    lows, highs = sample((batches, 3, 4), seed).aminmax(dim=2)
    running = EmaRange(momentum)
    for low, high in zip(lows, highs, strict=True):
        before = running
        running = running.update(low, high)
        assert before is not running
    weight = momentum ** torch.arange(batches - 1, -1, -1).double() * (1 - momentum)
    weight[0] = momentum ** (batches - 1)
    low, high = ((ends * weight[:, None]).sum(0).float() for ends in (lows, highs))
    assert torch.allclose(running.low, low, rtol=1e-4)
    assert torch.allclose(running.high, high, rtol=1e-4)
    want = affine_params(low, high, 8, False)
    assert torch.allclose(running.params(8).scale, want.scale, rtol=1e-4)
    assert ((running.params(8).zero_point - want.zero_point).abs() <= 1).all()


def test_running_range_edges():
    with pytest.raises(ValueError, match="no batch"):
        EmaRange().params(8)
    with pytest.raises(ValueError, match="NaN or infinity"):
        EmaRange().update(torch.tensor(0.0), torch.tensor(float("inf")))
