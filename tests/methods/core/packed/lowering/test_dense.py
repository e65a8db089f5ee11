"""Convolutions in groups whose panels would be mostly padding are held as their codes."""

import copy
import dataclasses
import pickle

import pytest
import torch

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.kernels import layout, oracle
from quantarena.methods.core.packed.nodes.dense import DenseLayer, packed_leaf
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.rebuild import build, leaf_nodes

DEPTHWISE = {
    "3x3": ((10, 1, 3, 3), (2, 10, 8, 7), {"padding": (1, 1), "groups": 10}),
    "stride 2": ((12, 1, 3, 3), (2, 12, 9, 9), {"stride": (2, 2), "groups": 12}),
    "two outputs a group": ((12, 1, 5, 1), (1, 6, 9, 9), {"padding": (2, 0), "groups": 6}),
    "pairs, dilated": ((12, 2, 3, 3), (1, 12, 9, 9), {"dilation": (2, 1), "groups": 6}),
}


@pytest.mark.parametrize("name", DEPTHWISE)
@pytest.mark.parametrize("bits", [(1, 8), (3, 4), (4, 8), (8, 8)])
def test_outputs_are_as_of_panels(make_layer, make_input, name, bits):
    shape, size, geometry = DEPTHWISE[name]
    for steps, multiplier in ((0, False), (3, True)):
        settings = {"steps": steps, "multiplier": multiplier, "asymmetric": True, **geometry}
        layer = make_layer(shape, *bits, **settings)
        dense, panels, x = packed_leaf(layer), PackedLayer(layer), make_input(size)
        x[0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        assert isinstance(dense, DenseLayer)
        for given in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3)):
            for step in range(max(1, steps)):
                want = oracle.accumulators(layer, given, step)
                assert torch.equal(dense.accumulators(given, step).long(), want)
                one, two = dense(given, step), panels(given, step)
                assert one.stride() == two.stride()
                assert torch.allclose(one, two, rtol=1e-5, atol=1e-5 * float(two.abs().max()))
                assert torch.allclose(dense.add_to(two.clone(), given, step), 2 * two, atol=1e-3)
        promised = -(-layer.weight_codes.numel() * bits[0] // 8)
        assert dense.codes.numel() == promised
        constants = dense.packed_bytes - promised
        assert constants <= 4 * (3 * shape[0] + size[1] + 2 * max(1, steps))
        assert dense.weight_bits_observed == pytest.approx(bits[0], abs=0.5)
        assert dense.backend == panels.backend


def test_depthwise_weights_take_a_fraction_of_fp32(make_layer):
    """Panels take ten times the bytes of fp32; the codes an eighth, and constants."""
    layer = make_layer((96, 1, 3, 3), 4, 8, bias=False, groups=96, padding=(1, 1))
    full = 4 * layer.weight_codes.numel()
    assert PackedLayer(layer).packed_bytes > 10 * full
    assert packed_leaf(layer).packed_bytes < full / 4


@pytest.mark.parametrize(
    ("shape", "groups", "dense"),
    [((32, 1, 3, 3), 32, True), ((32, 4, 3, 3), 8, True), ((32, 8, 3, 3), 4, False)],
)
def test_only_what_would_be_mostly_padding_is_dense(make_layer, shape, groups, dense):
    layer = make_layer(shape, 4, 8, groups=groups)
    assert isinstance(packed_leaf(layer), DenseLayer) == dense
    assert layout.panel_bytes(layer) == PackedLayer(layer).panels.numel()
    assert not isinstance(packed_leaf(make_layer((1, 64, 1, 1), 4, 8)), DenseLayer)


def test_sums_that_float32_would_round_are_not_dense(make_layer):
    layer = make_layer((2, 1, 17, 17), 8, 8, codes="low", groups=2)  # 289 products of 255 * 128
    assert isinstance(packed_leaf(layer), DenseLayer)
    far = dataclasses.replace(layer, weight_zero=torch.full((2,), 256, dtype=torch.int32))
    assert not isinstance(packed_leaf(far), DenseLayer)


@pytest.mark.parametrize("dynamic", [False, True])
def test_quantized_layers_pack_densely_and_come_back(make, dynamic):
    case = make.conv(Bits(4, 8), shape=(2, 12, 7, 6), out=12, groups=12)
    case = (case.dynamic() if dynamic else case.bank()).done()
    assert {type(leaf) for leaf in leaf_nodes(case.packed)} == {DenseLayer}
    with case.clock.at(2):
        make.check(case)
        for other in (copy.deepcopy(case.packed), pickle.loads(pickle.dumps(case.packed))):
            other.set_clock(case.clock)
            assert torch.equal(other(case.x), case.packed(case.x))


def test_bad_inputs_are_refused(make_layer):
    module = packed_leaf(make_layer((4, 1, 3, 3), 4, 8, groups=4, steps=2))
    with pytest.raises(ValueError, match="does not fit"):
        module(torch.zeros(1, 5, 8, 8))
    with pytest.raises(ValueError, match="float32"):
        module(torch.zeros(1, 4, 8, 8, dtype=torch.float64))
    with pytest.raises(IndexError, match="not in the table"):
        module(torch.zeros(1, 4, 8, 8), 2)
    with pytest.raises(ValueError, match="no panels"):
        module.repack(True)


def test_rows_with_ranges_of_their_own_need_panels(make):
    """The kernels for rows read panels; a description that promises none is refused."""
    case = make.linear(Bits(4, 8), shape=(3, 7, 24), out=1).dynamic(group=2).done()
    document = case.packed.describe()
    document["leaf"]["form"] = "dense"
    with pytest.raises(ValueError, match="need packed codes"):
        build(document, dict(case.packed.state_dict()))


def test_a_description_cannot_make_long_sums_dense(make_layer):
    for layer in (make_layer((4, 300, 3, 3), 8, 8, codes="low"), make_layer((4, 6), 4, 8)):
        module = PackedLayer(layer)
        with pytest.raises(ValueError, match="sums below"):
            build({**module.describe(), "form": "dense"}, dict(module.state_dict()))
