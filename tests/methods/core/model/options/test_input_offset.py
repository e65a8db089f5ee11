"""Offsets of input channels: where they are a constant, and that they pack."""

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.options.input_offset import InputOffset
from quantarena.methods.core.packed.lowering.lower import pack_layer
from quantarena.methods.techniques.ranges.minmax import minmax_range


@pytest.mark.parametrize(
    ("module", "size"),
    [
        (nn.Linear(4, 4), 3),
        (nn.Conv2d(4, 4, 3, padding=1), 4),
        (nn.Conv2d(4, 4, 1, groups=2), 4),
    ],
)
def test_offsets_that_are_no_constant_are_refused(module, size):
    with pytest.raises(ValueError, match="offset"):
        InputOffset.of(torch.ones(size), QuantLayer(module, Bits(8, 8)))


def test_an_unpadded_convolution_has_offsets_too():
    layer = QuantLayer(nn.Conv2d(6, 4, 3, stride=2), Bits(8, 8))
    x = torch.randn(2, 6, 9, 9) + 20.0
    layer.put(InputOffset.of(torch.full((6,), 20.0), layer))
    layer.set_weight_ranges(minmax_range, symmetric=False)
    layer.only_part.static.set_params(minmax_range(x - 20.0, 8))
    layer.freeze()
    with torch.no_grad():
        weight = layer.only_part.weight_quantizer(layer.weight)
        target = nn.functional.conv2d(x, weight, layer.bias, 2)
        assert (layer(x) - target).abs().max() < 0.1
        assert torch.allclose(pack_layer(layer)(x), layer(x), rtol=1e-5, atol=1e-4)
