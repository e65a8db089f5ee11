"""Nodes above the leaves on every instruction set, and their descriptions."""

import copy
import dataclasses
import pickle

import pytest
import torch

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.kernels import oracle
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.rebuild import build, leaf_nodes
from quantarena.methods.core.packed.nodes.row_ranges import RowScaledLayer, SampleScaledLayer
from quantarena.methods.core.packed.nodes.wrappers import (
    Conv1dLayer,
    LowRankLayer,
    MixedWidthLayer,
)
from quantarena.methods.core.quantizers.activation import DynamicActQuantizer


def unit(layer, zeros=1):
    """With an activation scale of 1 and a table of zero points."""
    table = torch.arange(zeros) if zeros > 1 else torch.tensor(0)
    return dataclasses.replace(layer, act_scale=torch.ones(table.shape), act_zero=table)


def centred(layer):
    shape = (-1, *[1] * (layer.weight_codes.dim() - 1))
    return layer.weight_codes.long() - layer.weight_zero.long().view(shape)


@pytest.mark.parametrize("bits", [(4, 8), (2, 4), (3, 8), (8, 8)])
@pytest.mark.parametrize("groups", [1, 3])
def test_rows_are_exact(make_layer, make_input, library, bits, groups):
    layer = make_layer((groups * 20, 12, 1, 1), *bits, asymmetric=True, bias=False, groups=groups)
    quantizer = DynamicActQuantizer(bits[1], group_size=12 if groups > 1 else 0)
    node = RowScaledLayer(PackedLayer(unit(layer), library), quantizer, None, None)
    x = make_input((3, 5, 12 * groups))
    view = x.view(3, 5, groups, 12)
    scale, zero = (t.view(3, 5, groups, 1) for t in dataclasses.astuple(quantizer.params(x))[:2])
    codes = ((view * (1 / scale)).round() + zero).clamp(0, 2 ** bits[1] - 1) - zero
    weight = centred(layer).view(groups, 20, 12)
    want = torch.einsum("btgk,gok->btgo", codes.long(), weight)
    assert torch.equal(node.accumulators(x).long(), want)
    scales = scale * layer.weight_scale.view(groups, 20)
    assert torch.allclose(node(x), (want * scales).sum(2), rtol=0, atol=1e-4)
    assert node(x[:0]).shape == (0, 5, 20)


@pytest.mark.parametrize("bits", [(4, 8), (2, 4), (8, 8)])
def test_samples_are_exact(make_layer, make_input, library, bits):
    layer = make_layer((18, 8, 3, 3), *bits, asymmetric=True, bias=False, padding=(1, 1))
    leaf = PackedLayer(unit(layer, 2 ** bits[1]), library)
    quantizer = DynamicActQuantizer(bits[1])
    node = SampleScaledLayer([leaf], quantizer, None, None)
    x = make_input((5, 8, 6, 7)) + torch.tensor([-3.0, 0, 0, 2, 9]).view(-1, 1, 1, 1)
    params = quantizer.params(x)
    assert len(torch.unique(params.zero_point)) >= 3
    codes = ((x * (1 / params.scale)).round() + params.zero_point).clamp(0, 2 ** bits[1] - 1)
    values = (codes - params.zero_point).double()
    want = torch.nn.functional.conv2d(values, centred(layer).double(), padding=1).long()
    (got,) = node.accumulators(x)
    assert torch.equal(got.long(), want)


@pytest.mark.parametrize("last", [False, True])
def test_channels_in_another_order(make_layer, make_input, library, last):
    parts = [make_layer((20, k, 3, 3), 4, 8, seed=k, bias=k == 5, padding=(1, 1)) for k in (5, 7)]
    order = torch.randperm(12)
    node = SplitPackedLayer(parts, library, order=order)
    x = make_input((2, 12, 6, 5))
    x = x.to(memory_format=torch.channels_last) if last else x
    pieces = zip(parts, torch.split(x[:, order].contiguous(), [5, 7], 1), strict=True)
    want = sum(oracle.forward(part, piece) for part, piece in pieces)
    assert torch.allclose(node(x), want, rtol=0, atol=1e-5 * float(want.abs().max()))
    assert node(x).is_contiguous(memory_format=torch.channels_last) == last


def test_rows_of_two_widths(make_layer, make_input, library):
    parts = [make_layer((n, 24), w, 8, seed=w) for n, w in ((7, 2), (12, 8))]
    back = torch.randperm(19)
    node = MixedWidthLayer([PackedLayer(part, library) for part in parts], back)
    x = make_input((4, 24))
    want = torch.cat([oracle.forward(part, x) for part in parts], -1)[:, back]
    assert torch.allclose(node(x), want, rtol=0, atol=1e-5 * float(want.abs().max()))
    assert [leaf.metadata["weight_bits"] for leaf in leaf_nodes(node)] == [2, 8]


def test_banks_by_row(make_layer, make_input, library):
    layer = make_layer((20, 8, 1, 3), 4, 8, steps=4, padding=(0, 1))
    node = Conv1dLayer(PackedLayer(layer, library))
    clock = CallClock()
    node.set_clock(clock)
    x = make_input((6, 8, 9))
    with clock.at(torch.tensor([3, 0, 3])):
        got = node(x)
    for row, step in enumerate([3, 3, 0, 0, 3, 3]):
        want = oracle.forward(layer, x[row : row + 1].unsqueeze(2), step).squeeze(2)
        assert torch.allclose(got[row], want[0], rtol=0, atol=1e-5 * float(want.abs().max()))
    node.set_clock(None)
    node.set_step(0)
    assert node.entries == 4
    with pytest.raises(IndexError, match="not in the table of 4"):
        node.set_step(4)


def tree(make_layer):
    """A node of many forms."""
    parts = [PackedLayer(make_layer((n, 24), w, 8, seed=w, steps=3)) for n, w in ((7, 2), (12, 8))]
    mixed = MixedWidthLayer(parts, torch.randperm(19))
    node = LowRankLayer(mixed, torch.randn(2, 24), torch.randn(19, 2), {})
    node.set_clock(CallClock())
    return node


def test_trees_are_copied_pickled_and_rebuilt(make_layer, make_input):
    node, x = tree(make_layer), make_input((2, 5, 24))
    with node.clock.at(2):
        want = node(x)
    again = build(node.describe(), dict(node.state_dict()))
    again.set_clock(CallClock())
    for other in (copy.deepcopy(node), pickle.loads(pickle.dumps(node)), again):
        (clock,) = {m.clock for m in other.modules() if hasattr(m, "clock")}
        assert clock is not node.clock
        with clock.at(2):
            assert torch.equal(other(x), want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(form="other"), "the form 'other'"),
        (lambda d, t: t.update(extra=torch.zeros(1)), "a tensor extra"),
        (lambda d, t: d.update(form="float_tokens"), "no longer supported: quantize again"),
        (lambda d, t: t.update({"up": torch.zeros(3, 2)}), "does not fit"),
        (lambda d, t: t.update({"inner.back": torch.zeros(19)}), "does not hold all 19"),
        (lambda d, t: t.pop("inner.parts.1.codes"), "has no codes"),
    ],
)
def test_what_does_not_fit_is_refused(make_layer, change, message):
    node = tree(make_layer)
    document, tensors = node.describe(), dict(node.state_dict())
    change(document, tensors)
    with pytest.raises(ValueError, match=message):
        build(document, tensors)
