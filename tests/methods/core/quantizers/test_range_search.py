import pytest
import torch

from quantarena.methods.core.quantizers.range_search import mixed_range
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mixed_widths_equal_one_search_a_channel(axis, symmetric):
    x = torch.randn(6, 6, 6, generator=torch.Generator().manual_seed(5))
    widths = torch.tensor([4, 1, 8, 4, 3, 8], dtype=torch.uint8)
    calls = []

    def counted(x, bits, *, axis=None, symmetric=False):
        calls.append(bits)
        return mse_range(x, bits, axis=axis, symmetric=symmetric)

    scale, zero = mixed_range(counted, x, widths, axis=axis, symmetric=symmetric)
    assert calls == [1, 3, 4, 8]
    for index, width in enumerate(widths):
        alone = mse_range(x.select(axis, index), int(width), symmetric=symmetric)
        assert scale.select(axis, index).item() == pytest.approx(alone.scale.item(), rel=1e-6)
        assert zero.select(axis, index).item() == alone.zero_point.item()
    assert scale.shape == minmax_range(x, 8, axis=axis).scale.shape


def test_mixed_widths_must_fit():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="do not fit 4 channels"):
        mixed_range(minmax_range, x, torch.tensor([4, 4, 4]))
    with pytest.raises(ValueError, match="1 to 8 bits"):
        mixed_range(minmax_range, x, torch.tensor([4, 4, 0, 4]))
