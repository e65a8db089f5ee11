"""The idea on planted structure, and everything that any method must get right."""

import torch
from torch import nn
from weighted_ranges.method import set_ranges

from quantarena.methods.core.bits import parse_bits
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.testing.conformance import check


def output_error(power, energy):
    """Mean squared error of a layer's outputs at 4 bits, on inputs with that energy by channel."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, bias=False)
    with torch.no_grad():
        linear.weight[:, 0] *= 0.1  # the channel that decides the output has small weights
    inputs = torch.randn(512, 64) * energy.sqrt()
    layer = QuantLayer(linear, parse_bits("w4a8"))
    set_ranges(layer, energy.double(), power)
    (part,) = layer.parts
    rounded = part.weight_quantizer(linear.weight)
    return float((inputs @ (rounded - linear.weight).T).square().mean())


def test_it_spends_its_codes_on_the_channel_that_decides_the_output():
    energy = torch.ones(64)
    energy[0] = 1e4
    assert output_error(1.0, energy) < 0.8 * output_error(0.0, energy)


def test_equal_channels_make_no_difference():
    assert output_error(1.0, torch.ones(64)) == output_error(0.0, torch.ones(64))


def test_it_passes_what_every_method_must():
    results = check("weighted_ranges")
    assert [f"{r.name} on {r.model}: {r.detail}" for r in results if not r.passed] == []
    assert "power matters" in {r.name for r in results}
