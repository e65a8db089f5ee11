"""OpenVINO runs our codes in int8, exactly; where it is installed."""

import numpy as np
import pytest
import torch

from quantarena.bench import machine
from quantarena.methods.core.bits import parse_bits
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.runtimes.plain_layers import plain_network

pytest.importorskip("openvino")

from quantarena.methods.rivals import ov_network
from quantarena.methods.runtimes import openvino_graph

SATURATES = not machine.has_dot_products()
CASES = [("rtn", "w8a8"), ("rtn", "w4a8"), ("q_diffusion", "w4a4")]


def runs_in_int8(probe, agrees, method, bits, folder, *, saturates):
    """Check that a filled graph predicts what the packed network does, with all layers in int8."""
    context = probe.context(parse_bits(bits), "paper", Effort(16, 2))
    packed = pack(entry(method).method().run(context))
    plain = plain_network(packed)
    points = probe.trajectory.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    model = ov_network.convert(plain.module, points)
    openvino_graph.fill(model, plain.layers, saturates=saturates)
    ov_network.save(model, folder)
    network = ov_network.OpenVinoNetwork(folder / ov_network.MODEL, ov_network.F32)
    agrees(probe, packed, network)
    integer = ov_network.integer_layers(network.compiled_for(points), plain.layers)
    assert set(integer) == set(plain.layers)


@pytest.mark.parametrize("name", ["pixel-unet", "conditional-unet", "transformer"])
@pytest.mark.parametrize(("method", "bits"), CASES)
def test_the_graph_computes_what_the_kernels_compute_in_int8(
    networks, agrees, name, method, bits, tmp_path
):
    runs_in_int8(networks[name], agrees, method, bits, tmp_path, saturates=SATURATES)


@pytest.mark.parametrize("method", ["rtn", "q_diffusion"])
@pytest.mark.parametrize("name", ["pixel-unet", "transformer"])
def test_weights_in_two_parts_are_the_same_products(networks, agrees, name, method, tmp_path):
    """The form for processors on which sums in int16 saturate is right on all of them."""
    runs_in_int8(networks[name], agrees, method, "w8a8", tmp_path, saturates=True)


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


def test_parts_of_codes():
    codes = np.arange(-128, 128)
    assert len(openvino_graph._parts(codes, 8, saturates=False)) == 1
    assert len(openvino_graph._parts(codes, 4, saturates=True)) == 1
    assert len(openvino_graph._parts(codes[64:193], 8, saturates=True)) == 1  # -64 to 64
    parts = openvino_graph._parts(codes, 8, saturates=True)
    assert (sum(part.astype(int) for part in parts) == codes).all()
    assert max(np.abs(part.astype(int)).max() for part in parts) * 255 * 2 <= 2**15 - 1
