"""Sensitivity by layer: the loss is that of one layer at one width, and nothing is left behind."""

from dataclasses import replace

import pytest
import torch

from quantarena.methods.core.affine import fake_quantize
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.policy import BUDGET
from quantarena.methods.info import Effort
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.widths.layer_losses import (
    candidates,
    layer_losses,
    relative_error,
)


def test_candidates_are_around_the_request():
    assert candidates(Bits(4, 8), (-2, 1)) == (Bits(2, 8), Bits(4, 8), Bits(5, 8))
    assert candidates(Bits(8, 8), (-1, 1)) == (Bits(7, 8), Bits(8, 8))
    assert candidates(Bits(2, 16), (-1, 1), acts=True) == (Bits(2, 16), Bits(3, 16))
    both = candidates(Bits(4, 4), (-1, 1), acts=True)
    assert set(both) == {Bits(w, a) for w in (3, 4, 5) for a in (3, 4, 5)}


def test_the_loss_is_that_of_one_layers_weight(transformer):
    context = replace(transformer.context(Bits(4, 8), "paper", Effort(8, 0)), policy=BUDGET)
    names = list(context.budget.layers)[:3]
    made = []

    def prepare(widths):
        model = context.wrap(widths=widths)
        model.set_weight_ranges(minmax_range)
        made.append(model)
        return model

    widths = candidates(Bits(4, 8), (-1, 4))
    points, calls = transformer.heldout, []
    found = layer_losses(
        prepare, names, widths, points, acts=False, progress=lambda *call: calls.append(call)
    )
    assert calls[-1] == (9, 9)
    plain = context.wrap()
    with torch.no_grad(), plain.using(weights=False, acts=False):
        target = plain.run(points)
        for name in names:
            assert list(found[name]) == list(widths)
            layer = plain.layers[name]
            weight = layer.weight.data
            for bits, loss in found[name].items():
                layer.weight.data = fake_quantize(weight, minmax_range(weight, bits.weight, axis=0))
                assert loss == pytest.approx(relative_error(plain.run(points), target), rel=1e-4)
            layer.weight.data = weight
            assert found[name][Bits(8, 8)] < found[name][Bits(4, 8)] < found[name][Bits(3, 8)]
    for model in made:
        assert all(x.use_weight_quantizer and x.use_act_quantizer for x in model.layers.values())


def test_each_layer_can_have_a_loss_of_its_own(transformer):
    context = replace(transformer.context(Bits(4, 8), "paper", Effort(8, 0)), policy=BUDGET)
    first, second = list(context.budget.layers)[:2]

    def prepare(widths):
        model = context.wrap(widths=widths)
        model.set_weight_ranges(minmax_range)
        return model

    losses = {first: lambda output, target: 1.0, second: lambda output, target: 2.0}
    found = layer_losses(
        prepare, (first, second), [Bits(4, 8)], transformer.heldout, losses, acts=False
    )
    assert found == {first: {Bits(4, 8): 1.0}, second: {Bits(4, 8): 2.0}}
