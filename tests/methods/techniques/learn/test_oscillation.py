"""Weights that turn are frozen where they were most of the time; others are left alone."""

import torch

from quantarena.methods.core.affine import quantize
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.quantizers.weight import Rounding
from quantarena.methods.techniques.learn.oscillation import Freezing
from quantarena.methods.techniques.ranges.minmax import minmax_range


def test_a_turning_weight_is_held_and_a_drifting_one_is_not(pixel):
    model = wrap(pixel.model, pixel.graph, UNIFORM.assign(pixel.graph, Bits(4, 8)))
    model.set_weight_ranges(minmax_range)
    layer = model.layers["mid_block.resnets.0.conv1"]
    quantizer = layer.parts[0].weight_quantizer
    quantizer.learn(layer.weight, rounding=Rounding.STE)
    freezer = Freezing(threshold=0.3, momentum=0.2).watch(model)
    master, params = quantizer.master, quantizer.params
    home = (quantize(master.detach(), params) - params.zero_point) * params.scale
    step = params.scale.expand_as(master)
    drifting = home[1, 0, 0, 0].clone()
    with torch.no_grad():
        for turn in range(12):
            # of three updates two are at home: that code is where it stays
            master[0, 0, 0, 0] = home[0, 0, 0, 0] + (turn % 3 == 2) * step[0, 0, 0, 0]
            master[1, 0, 0, 0] = drifting + 0.4 * turn * step[1, 0, 0, 0]
            freezer.step()
    assert torch.allclose(master[0, 0, 0, 0], home[0, 0, 0, 0])
    assert freezer.share() == 1 / master.numel()
    with torch.no_grad():
        master += 2 * step
        freezer.step()
    assert torch.allclose(master[0, 0, 0, 0], home[0, 0, 0, 0]), "frozen for good"
    assert not torch.allclose(master[2], home[2])
