"""A packed network in bfloat16: what stays float32, and what it computes."""

import copy

import pytest
import torch

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.nested import prediction
from quantarena.methods.core.packed.nodes.fusion import plain
from quantarena.methods.core.packed.nodes.node import Node
from quantarena.methods.core.packed.number_format import InFormat
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.testing.networks import probes


@pytest.fixture(params=[(m, n) for m in ("rtn", "svdquant", "dgq") for n in range(3)], ids=str)
def packed_and_points(request):
    """A packed network, one of three shapes, and points of one sampler call."""
    method, number = request.param
    probe = list(probes())[number]
    context = probe.context(Bits(4, 8), "paper", Effort(8, 0))
    model = entry(method).method().run(context)
    points = probe.trajectory.pick(torch.ones(2, dtype=torch.long), torch.arange(2))
    return pack(model), points


@torch.no_grad()
def test_codes_and_scales_stay_as_they_are(packed_and_points):
    packed, points = packed_and_points
    before = {
        f"{name}.{key}": value.clone()
        for name, layer in packed.layers.items()
        for key, value in (*layer.named_buffers(), *layer.named_parameters())
    }
    with packed.clock.at(int(points.step[0])):
        full = prediction(points.call(packed.module), packed.module).clone()
        lowered = InFormat(packed.module, torch.bfloat16)
        found = points.call(lowered)
    assert found.dtype is torch.float32
    for name, layer in packed.layers.items():
        for key, value in layer.named_buffers():
            old = before[f"{name}.{key}"]
            assert value.dtype is old.dtype
            assert torch.equal(value, old), f"{name}.{key} changed"
    assert {p.dtype for p in packed.module.parameters()} == {torch.bfloat16}
    off = float((found - full).norm() / full.norm())
    assert 0 < off < 0.1, "bfloat16 has 8 bits: about 0.4 % an operation"


@torch.no_grad()
def test_a_packed_layer_gives_back_the_format_that_it_is_given(packed_and_points):
    packed, points = packed_and_points
    inputs = {}
    handles = [
        layer.register_forward_hook(lambda _, args, __, name=name: inputs.update({name: args[0]}))
        for name, layer in packed.layers.items()
    ]
    with packed.clock.at(int(points.step[0])):
        points.call(packed.module)
        for handle in handles:
            handle.remove()
        for name, layer in packed.layers.items():
            x = plain(inputs[name]).bfloat16()
            full, short = layer(x.float()), layer(x)
            assert short.dtype is torch.bfloat16
            assert torch.equal(plain(short), plain(full).bfloat16()), name


def test_the_network_sees_the_format_in_the_weight_of_a_packed_layer(packed_and_points):
    packed, _ = packed_and_points
    other = copy.deepcopy(packed.module)
    InFormat(other, torch.bfloat16)
    nodes = [m for m in other.modules() if isinstance(m, Node)]
    assert nodes
    assert {node.weight.dtype for node in nodes if node.weight.numel() == 0} == {torch.bfloat16}
