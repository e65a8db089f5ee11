"""ONNX Runtime computes our codes exactly; where it is installed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.bench import machine
from quantarena.methods.core.bits import parse_bits
from quantarena.methods.core.errors import QuantArenaError, Unsupported
from quantarena.methods.core.kernels import oracle
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.record.trajectory import CalibrationSet
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.runtimes.plain_layers import plain_network

pytest.importorskip("onnxruntime")

from onnx import numpy_helper

from quantarena.methods.runtimes import onnx_graph, onnx_network, plain_layers

CASES = [("rtn", "w8a8"), ("rtn", "w4a8"), ("q_diffusion", "w4a4")]

FORMS = [
    pytest.param(
        False,
        marks=pytest.mark.skipif(
            not machine.has_dot_products(), reason="this form saturates on this processor"
        ),
    ),
    True,
]
"""Whether the file is written for processors on which sums in int16 saturate."""


def exported(packed, points, folder, *, saturates=False):
    plain = plain_network(packed)
    model = onnx_network.convert(plain.module, points)
    onnx_graph.fill(model, plain.layers, saturates=saturates)
    onnx_network.save(model, folder)
    return model, onnx_network.OnnxNetwork(folder / onnx_network.MODEL)


@pytest.mark.parametrize("name", ["pixel-unet", "conditional-unet", "transformer"])
@pytest.mark.parametrize(("method", "bits"), CASES)
@pytest.mark.parametrize("saturates", FORMS)
def test_the_graph_computes_what_the_kernels_compute(
    networks, agrees, name, method, bits, saturates, tmp_path
):
    probe = networks[name]
    context = probe.context(parse_bits(bits), "paper", Effort(16, 2))
    packed = pack(entry(method).method().run(context))
    points = probe.trajectory.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    model, network = exported(packed, points, tmp_path, saturates=saturates)
    agrees(probe, packed, network)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MatMulInteger") == len(plain_network(packed).layers)


class Net(nn.Module):
    """A network of one layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, sample, timestep, return_dict=True):
        once = (0 * timestep + 1).reshape(-1, *[1] * (sample.dim() - 1))  # an input that is used
        return (self.layer(sample * once),)


def layer_of(kind, weight_bits, act_bits, *, zero=0, seed=0, **geometry):
    g = torch.Generator().manual_seed(seed)
    shape = (5, 6) if kind == "linear" else (5, 6, 3, 2)
    low, high = -(1 << (weight_bits - 1)), (1 << (weight_bits - 1)) - 1
    return IntegerLayer(
        kind=kind,
        weight_codes=torch.randint(low, high + 1, shape, generator=g, dtype=torch.int8),
        weight_bits=weight_bits,
        weight_scale=torch.rand(5, generator=g) * 0.05 + 0.01,
        weight_zero=torch.full((5,), zero, dtype=torch.int32),
        act_bits=act_bits,
        act_scale=torch.tensor(0.07),
        act_zero=torch.tensor((1 << act_bits) // 3),
        in_mult=torch.rand(6, generator=g) + 0.5,
        bias=torch.randn(5, generator=g),
        **geometry,
    )


def graph_of(layer, shape, folder, *, saturates=False):
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)) * 3
    points = CalibrationSet(x, torch.zeros(4), torch.zeros(4, dtype=torch.long))
    model = onnx_network.convert(Net(plain_layers._layer(layer)), points)
    onnx_graph.fill(model, {"layer": layer}, saturates=saturates)
    onnx_network.save(model, folder)
    return model, points.call(onnx_network.OnnxNetwork(folder / onnx_network.MODEL)), x


GEOMETRIES = [
    {},
    {"padding": (1, 2)},
    {"stride": (2, 3), "padding": (1, 0)},
    {"dilation": (2, 1), "padding": (2, 1), "stride": (1, 2)},
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("bits", "zero"), [((4, 8), 0), ((4, 3), -3), ((8, 8), 100), ((8, 5), 0)])
@pytest.mark.parametrize("saturates", FORMS)
def test_convolutions_of_every_geometry(geometry, bits, zero, saturates, tmp_path):
    layer = layer_of("conv2d", *bits, zero=zero, **geometry)
    _, found, x = graph_of(layer, (6, 9, 8), tmp_path, saturates=saturates)
    assert torch.allclose(found, oracle.forward(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(6,), (7, 6), (2, 3, 6)])
@pytest.mark.parametrize(("bits", "zero"), [((2, 4), 1), ((8, 8), 0), ((8, 8), -128)])
def test_linear_layers_of_every_rank(shape, bits, zero, tmp_path):
    layer = layer_of("linear", *bits, zero=zero)
    _, found, x = graph_of(layer, shape, tmp_path)
    assert torch.allclose(found, oracle.forward(layer, x), rtol=1e-5, atol=1e-5)


def weight_of(model):
    held = {each.name.rpartition("/")[2]: each for each in model.graph.initializer}
    return numpy_helper.to_array(held["weight"])


def test_a_layer_that_is_called_twice(tmp_path):
    class Twice(Net):
        def forward(self, sample, timestep, return_dict=True):
            (once,) = super().forward(sample, timestep)
            return (self.layer(once[..., :5].repeat(1, 2)[:, :6]),)

    layer = layer_of("linear", 4, 8)
    points = CalibrationSet(torch.randn(4, 6), torch.zeros(4), torch.zeros(4, dtype=torch.long))
    model = onnx_network.convert(Twice(plain_layers._layer(layer)), points)
    onnx_graph.fill(model, {"layer": layer}, saturates=False)
    assert [node.op_type for node in model.graph.node].count("MatMulInteger") == 2
    onnx_network.save(model, tmp_path)
    found = points.call(onnx_network.OnnxNetwork(tmp_path / onnx_network.MODEL))
    first = oracle.forward(layer, points.sample).repeat(1, 2)[:, :6]
    assert torch.allclose(found, oracle.forward(layer, first), rtol=1e-5, atol=1e-5)


def test_which_weights_are_unsigned(tmp_path):
    """Where int16 sums saturate, weights that reach its end are uint8."""
    narrow, wide = layer_of("linear", 4, 8), layer_of("linear", 8, 8)
    for layer, saturates, kind in [
        (narrow, False, "int8"),
        (narrow, True, "int8"),
        (wide, False, "int8"),
        (wide, True, "uint8"),
        (layer_of("linear", 8, 4), True, "int8"),
    ]:
        model, _, _ = graph_of(layer, (6,), tmp_path, saturates=saturates)
        assert weight_of(model).dtype == kind
    beyond = layer_of("linear", 8, 8, zero=100)
    model, _, _ = graph_of(beyond, (6,), tmp_path)
    assert weight_of(model).shape == (6, 6), "a column of ones for the zero points"


def test_what_cannot_be_expressed_is_named(tmp_path):
    groups = layer_of("conv2d", 4, 8)
    groups = replace(groups, groups=5, in_mult=None)
    with pytest.raises(Unsupported, match="layer has groups"):
        graph_of(groups, (30, 9, 8), tmp_path)
    layer = layer_of("linear", 4, 8)
    points = CalibrationSet(torch.zeros(2, 6), torch.zeros(2), torch.zeros(2))
    model = onnx_network.convert(Net(nn.Linear(6, 5)), points)
    with pytest.raises(QuantArenaError, match="no product of nowhere"):
        onnx_graph.fill(model, {"nowhere": layer}, saturates=False)
