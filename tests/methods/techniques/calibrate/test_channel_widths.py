"""Swaps of bits between channels: exact means, and errors that need no second quantization."""

import pytest
import torch

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.techniques.calibrate.channel_widths import (
    best_swap,
    channel_errors,
    swapped_widths,
)
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.calibrate.plan import FLOAT_WEIGHTS
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_mean_is_exact(count):
    scores = torch.rand(11)
    widths = swapped_widths(scores, 3, count)
    assert float(widths.float().mean()) == 3.0
    assert [int((widths == w).sum()) for w in (2, 3, 4)] == [count, 11 - 2 * count, count]
    if count:
        assert float(scores[widths == 4].min()) >= float(scores[widths != 4].max())
        assert float(scores[widths == 2].max()) <= float(scores[widths != 2].min())


@pytest.mark.parametrize("count", [-1, 6])
def test_more_than_half_is_refused(count):
    with pytest.raises(ValueError, match="cannot be widened"):
        swapped_widths(torch.rand(11), 3, count)


@pytest.mark.parametrize("quantized_inputs", [True, False])
def test_errors_are_those_of_layers_under_the_bit_map(pixel, quantized_inputs):
    points = pixel.heldout
    model = wrap(pixel.model, pixel.graph, UNIFORM.assign(pixel.graph, Bits(3, 8)))
    calibrate_activations(model, points, minmax_range, FLOAT_WEIGHTS)
    names = ["down_blocks.0.resnets.0.conv1", "up_blocks.0.attentions.0.to_q"]
    errors = channel_errors(
        model, points, names, mse_range, quantized_inputs=quantized_inputs, batch=3
    )
    for name in names:
        layer, inputs = model.layers[name], []
        handle = layer.register_forward_pre_hook(lambda m, args, kept=inputs: kept.append(args[0]))
        with torch.no_grad(), model.using(weights=False, acts=False):
            model.run(points)
        handle.remove()
        scores, totals = torch.rand(len(layer.weight)), []
        counts = range(len(scores) // 2 + 1)
        for count in counts:
            layer.parts[0].weight_quantizer.set_bit_map(swapped_widths(scores, 3, count))
            layer.set_weight_ranges(mse_range, symmetric=False)
            with torch.no_grad(), model.using(weights=True, acts=quantized_inputs):
                target = layer.affine(inputs[0], layer.weight, layer.bias)
                totals.append(float((layer(inputs[0]) - target).square().sum()))
        chosen, found = best_swap(errors[name], scores, counts)
        assert torch.allclose(found, torch.tensor(totals), rtol=1e-3)
        assert totals[chosen] == min(totals)
