"""OpenVINO runs our codes in int8, exactly; where it is installed."""

import pytest
import torch
from torch import nn

from quantarena.bench.machine import has_dot_products
from quantarena.methods.core.bits import parse_bits
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.kernels import oracle
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.record.trajectory import CalibrationSet
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.runtimes import plain_layers
from quantarena.methods.runtimes.plain_layers import plain_network

pytest.importorskip("openvino")

from quantarena.methods.rivals import ov_network
from quantarena.methods.runtimes import openvino_graph

CASES = [("rtn", "w8a8"), ("rtn", "w4a8"), ("q_diffusion", "w4a4")]
SATURATES = not has_dot_products()
"""Of this processor. Weights in halves are exact everywhere, whole ones where this is False."""


@pytest.mark.parametrize("name", ["pixel-unet", "conditional-unet", "transformer"])
@pytest.mark.parametrize(("method", "bits"), CASES)
@pytest.mark.parametrize("saturates", sorted({True, SATURATES}))
def test_the_graph_computes_what_the_kernels_compute_in_int8(
    networks, agrees, name, method, bits, saturates, tmp_path
):
    probe = networks[name]
    context = probe.context(parse_bits(bits), "paper", Effort(16, 2))
    packed = pack(entry(method).method().run(context))
    plain = plain_network(packed)
    points = probe.trajectory.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    model = ov_network.convert(plain.module, points)
    openvino_graph.fill(model, plain.layers, saturates=saturates)
    ov_network.save(model, tmp_path)
    network = ov_network.OpenVinoNetwork(tmp_path / ov_network.MODEL, ov_network.F32)
    agrees(probe, packed, network)
    integer = ov_network.integer_layers(network.compiled_for(points), plain.layers)
    assert set(integer) == set(plain.layers)


@pytest.mark.parametrize("method", ["rtn", "q_diffusion"])
def test_symmetric_weights_need_no_sum_over_the_input(networks, agrees, method, tmp_path):
    probe, kind = networks["transformer"], entry(method).method
    points = probe.trajectory.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    added = {}
    for symmetric in (False, True):
        context = probe.context(parse_bits("w8a8"), "paper", Effort(16, 2))
        packed = pack(kind(kind.Options(symmetric_weights=symmetric)).run(context))
        plain = plain_network(packed)
        model = ov_network.convert(plain.module, points)
        before = len(model.get_ops())
        openvino_graph.fill(model, plain.layers, saturates=SATURATES)
        kinds = [node.get_type_name() for node in model.get_ops()]
        added[symmetric] = kinds.count("ReduceSum"), len(kinds) - before
        (folder := tmp_path / str(symmetric)).mkdir()
        ov_network.save(model, folder)
        network = ov_network.OpenVinoNetwork(folder / ov_network.MODEL, ov_network.F32)
        agrees(probe, packed, network)
    assert added[False][0] > added[True][0] == 0
    assert added[False][1] > added[True][1]


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, sample, timestep, return_dict=True):
        return (self.layer(sample),)


def extreme_layer(kind, zero):
    """Weights and inputs whose pairs of products do not fit int16."""
    random = torch.Generator().manual_seed(0)
    shape = (5, 64) if kind == "linear" else (5, 64, 3, 3)
    codes = torch.tensor([-128, -127, 126, 127])[torch.randint(4, shape, generator=random)]
    return IntegerLayer(
        kind=kind,
        weight_bits=8,
        act_bits=8,
        weight_codes=codes,
        weight_scale=torch.full((5,), 0.01),
        weight_zero=torch.full((5,), zero),
        act_scale=torch.tensor(0.05),
        act_zero=torch.tensor(3),
        in_mult=None,
        bias=torch.zeros(5),
    )


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("zero", [0, 100])
@pytest.mark.parametrize("saturates", sorted({True, SATURATES}))
def test_sums_of_the_largest_products_are_exact(kind, zero, saturates, tmp_path):
    layer = extreme_layer(kind, zero)
    shape = (4, 64) if kind == "linear" else (4, 64, 6, 6)
    x = 12 * torch.rand(shape, generator=torch.Generator().manual_seed(1))
    points = CalibrationSet(x, torch.zeros(4), torch.zeros(4, dtype=torch.long))
    model = ov_network.convert(Net(plain_layers._layer(layer)), points)
    openvino_graph.fill(model, {"layer": layer}, saturates=saturates)
    ov_network.save(model, tmp_path)
    network = ov_network.OpenVinoNetwork(tmp_path / ov_network.MODEL, ov_network.F32)
    found, wanted = points.call(network), oracle.forward(layer, x)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    integer = ov_network.integer_layers(network.compiled_for(points), {"layer": layer})
    assert set(integer) == {"layer"}


def test_a_layer_without_a_product_is_named(networks):
    probe = networks["transformer"]
    packed = pack(
        entry("rtn").method().run(probe.context(parse_bits("w4a8"), "paper", Effort(16, 0)))
    )
    plain = plain_network(packed)
    points = probe.trajectory.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    model = ov_network.convert(plain.module, points)
    layers = {**plain.layers, "nowhere": next(iter(plain.layers.values()))}
    with pytest.raises(QuantArenaError, match="no product of nowhere"):
        openvino_graph.fill(model, layers, saturates=False)
