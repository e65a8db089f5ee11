"""Which parameters start to learn: by group, and in which layers."""

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.techniques.learn.learning import start_learning
from quantarena.methods.techniques.learn.param_groups import Group
from quantarena.methods.techniques.ranges.minmax import minmax_range


def layer():
    made = QuantLayer(nn.Linear(6, 4), Bits(4, 4))
    made.set_weight_ranges(minmax_range, symmetric=False)
    made.parts[0].static.set_params(minmax_range(torch.randn(9), 4))
    return made


def learning(kind, layers):
    """The names of the layers that learn in a group."""
    parameters = {id(x.parameter) for x in kind}
    found = set()
    for name, made in layers.items():
        part = made.parts[0]
        own = [part.weight_quantizer.master, part.weight_quantizer.scale, part.static.scale]
        if parameters & {id(parameter) for parameter in own}:
            found.add(name)
    return found


def test_groups_learn_in_the_layers_that_they_name():
    layers, product = {name: layer() for name in "abc"}, ActQuantizer(4)
    product.set_params(minmax_range(torch.randn(9), 4))
    layers["c"].freeze()
    groups = {
        "weight": Group(0.1, layers=frozenset("a")),
        "act_scale": Group(0.1, layers=frozenset("bc"), products=True),
    }
    found = start_learning(layers, [product], groups)
    assert learning(found.parameters["weight"], layers) == {"a"}
    acts = found.parameters["act_scale"]
    assert learning(acts, layers) == {"b", "c"}
    assert any(x.parameter is product.scale for x in acts)
    assert not layers["a"].parts[0].static.scale.requires_grad
    found.finish()
    assert layers["a"].parts[0].weight_quantizer.codes is not None
    assert layers["b"].parts[0].weight_quantizer.codes is None, "it did not learn"


def test_products_can_be_left_out():
    product = ActQuantizer(4)
    product.set_params(minmax_range(torch.randn(9), 4))
    start_learning({"a": layer()}, [product], {"act_scale": Group(0.1, products=False)})
    assert not product.scale.requires_grad


def test_fixed_codes_learn_only_after_they_were_thawed():
    frozen = layer()
    frozen.freeze()
    groups = {"weight": Group(0.1, layers=frozenset("a"))}
    with pytest.raises(ValueError, match="a: its weight codes are fixed"):
        start_learning({"a": frozen}, [], groups)
    frozen.parts[0].weight_quantizer.thaw(frozen.weight)
    assert "weight" in start_learning({"a": frozen}, [], groups).parameters
