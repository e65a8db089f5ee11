"""The integers of packed layers, and options of random layers together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.kernels import formats, oracle
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.k_groups import GroupedLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.rebuild import build, leaf_nodes

MORE = [Bits(w, a) for w in (2, 3, 4, 8) for a in (4, 8)]
MORE += [Bits(1, 8), Bits(5, 6), Bits(6, 5), Bits(4, 1)]


def int_codes(quantizer):
    """(O, K) codes less zero points, int64."""
    scale = quantizer._view(quantizer.codes.long())
    return quantizer._back(scale - quantizer.zero_point.long())


@pytest.mark.parametrize("bits", MORE, ids=str)
@pytest.mark.parametrize("group", [0, 8])
def test_integers_of_dynamic_tokens_are_those_of_the_formula(make, bits, group):
    case = make.linear(bits).dynamic(group=group).done()
    params = case.parts[0].act_quantizer.params(case.x)
    view = case.x.unflatten(-1, (-1, group or 24))
    scale, zero = (t if group else t.unsqueeze(-1) for t in (params.scale, params.zero_point))
    codes = (torch.round(view * (1 / scale)) + zero).clamp(0, 2**bits.act - 1)
    centred = (codes - zero).long()
    weight = int_codes(case.parts[0].weight_quantizer).unflatten(1, (-1, group or 24))
    want = torch.einsum("btgk,ogk->btgo", centred, weight)
    assert torch.equal(case.packed.accumulators(case.x).long(), want)


@pytest.mark.parametrize("bits", MORE, ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
def test_integers_of_dynamic_samples_are_those_of_the_formula(make, bits, symmetric):
    case = make.conv(bits).dynamic(symmetric=symmetric).done()
    params = case.parts[0].act_quantizer.params(case.x)
    codes = (torch.round(case.x * (1 / params.scale)) + params.zero_point).clamp(0, 2**bits.act - 1)
    centred = (codes - params.zero_point).double()
    weight = int_codes(case.parts[0].weight_quantizer).double()
    want = nn.functional.conv2d(centred, weight, padding=1).long()
    (got,) = case.packed.accumulators(case.x)
    assert torch.equal(got.long(), want)


def test_rows_in_several_chunks_are_the_same(make, monkeypatch):
    from quantarena.methods.core.packed.nodes import row_ranges

    case = make.linear().dynamic(group=8).done()
    whole = case.packed(case.x)
    monkeypatch.setattr(row_ranges, "_CHUNK", 60)
    assert torch.equal(case.packed(case.x), whole)


def test_a_split_keeps_the_memory_format(make):
    for case in (
        make.conv().groups(1, 3).done(),
        make.conv().bit_map(2, 4).done(),
        make.conv().dynamic().done(),
    ):
        assert case.packed(case.x).is_contiguous(memory_format=torch.channels_last)
        assert case.packed(case.x.contiguous()).is_contiguous()


def test_tables_of_two_lengths_are_refused(make):
    case = make.linear(splits=(16, 8)).bank()
    case.parts[1].act_quantizer.set_bank(torch.ones(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"tables of \[3, 5\] sampler calls"):
        case.done()


def test_parts_are_added_in_place(make, monkeypatch):
    case = make.linear(splits=(16, 8)).done()
    assert isinstance(case.packed, SplitPackedLayer)
    called = []
    plain = PackedLayer.add_to
    monkeypatch.setattr(PackedLayer, "add_to", lambda *a: called.append(1) or plain(*a))
    make.check(case)
    assert called


def draw_case(make, draw):
    """A layer of random shape with a random set of options that go together."""
    bits = Bits(draw(st.integers(1, 8)), draw(st.sampled_from([1, 2, 4, 5, 8, 8, 16])))
    group = draw(st.integers(1, 4))
    channels, out = group * draw(st.integers(2, 6)), draw(st.integers(1, 19))
    batch, seed = draw(st.integers(1, 3)), draw(st.integers(0, 99))
    split = draw(st.booleans())
    splits = (group, channels - group) if split else ()
    kind, size = draw(st.sampled_from(["linear", "conv", "conv1d"])), draw(st.integers(1, 5))
    kernel = draw(st.sampled_from([1, 3]))
    options = {"kernel_size": kernel, "padding": kernel // 2, "splits": splits}
    options["stride"] = draw(st.integers(1, 2))
    if kind == "linear":
        tokens = draw(st.sampled_from([(), (size,), (2, size)]))
        case = make.linear(
            bits, shape=(batch, *tokens, channels), out=out, splits=splits, seed=seed
        )
    elif kind == "conv":
        shape = (batch, channels, size, draw(st.integers(1, 5)))
        case = make.conv(bits, shape=shape, out=out, last=draw(st.booleans()), **options)
    else:
        case = make.conv1d(bits, shape=(batch, channels, size), out=out, **options)
    if draw(st.booleans()):
        case.mult()
    if draw(st.booleans()):
        case.low_rank(draw(st.integers(1, 3)))
    narrow = draw(st.sampled_from(["", "map", "groups"]))
    if narrow == "map" and out > 1:
        case.bit_map(*draw(st.sampled_from([(1, 8), (2, 4), (3, 5)])))
    elif narrow == "groups":
        case.weight_groups(group)
    if bits.act < 16:
        if kind != "conv1d" and draw(st.booleans()):
            grouped = kind == "linear" and case.x.dim() != 4 and draw(st.booleans())
            case.dynamic(symmetric=draw(st.booleans()), group=group if grouped else 0)
        elif draw(st.booleans()):
            case.groups(-1 if kind == "linear" else 1, 1)
        elif kind == "linear" and case.x.dim() == 3 and draw(st.booleans()):
            case.groups(-2, 1 + (case.x.shape[1] > 1))
    return case.done(symmetric=draw(st.booleans()))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_options_of_any_layer_go_together(make, data):
    case = draw_case(make, data.draw)
    with torch.no_grad():
        fake, packed = case.layer(case.x), case.packed(case.x)
    assert packed.shape == fake.shape
    # a single output may be next to nothing where its terms are not
    term = case.x.abs().max() * case.layer.weight.abs().max()
    assert float((fake - packed).abs().max()) <= 1e-5 * float(fake.abs().max() + term)
    clear = min(*case.x.shape, *packed.shape) > 1  # an axis of one can lie anywhere
    if clear and case.layer.spatial == 2 and oracle.channels_last(case.x):
        assert packed.is_contiguous(memory_format=torch.channels_last)
    again = build(case.packed.describe(), dict(case.packed.state_dict()))
    assert torch.equal(again(case.x), packed)


LONG = {
    "linear": lambda make: make.linear(),
    "bank": lambda make: make.linear().bank(),
    "weight groups": lambda make: make.linear().weight_groups(8),
    "convolution": lambda make: make.conv(),
    "splits": lambda make: make.conv(splits=(10, 14)),
    "channel groups": lambda make: make.conv().groups(1, 3),
    "1-d": lambda make: make.conv1d(),
    "bit map": lambda make: make.linear().bit_map(3, 4, 8),
    "multipliers": lambda make: make.conv().mult(),
    "dynamic tokens": lambda make: make.linear().dynamic(),
    "dynamic token groups": lambda make: make.linear().dynamic(group=12),
    "dynamic samples": lambda make: make.conv().dynamic(),
    "token groups": lambda make: make.linear().groups(1, 3),
}


@pytest.mark.parametrize("name", LONG)
def test_sums_that_are_too_long_for_their_accumulators_are_cut(make, monkeypatch, name):
    """The same as with accumulators that hold them, in more leaves or more groups."""
    case = LONG[name](make)
    torch.manual_seed(5)
    whole = LONG[name](make).done()
    before = integer_layers(whole.packed)
    monkeypatch.setattr(formats, "MAX_SUM", limit := max(map(bound, before)) // 3)
    torch.manual_seed(5)
    case.done()
    with case.clock.at(1):
        make.check(case)
    layers = integer_layers(case.packed)
    assert max(map(bound, layers)) <= limit
    assert sum(layer.out_features for layer in layers) > sum(layer.out_features for layer in before)


def integer_layers(node):
    """The layers of all leaves, and of all groups of channels."""
    leaves = leaf_nodes(node)
    return [
        layer
        for leaf in leaves
        for layer in (leaf.layers() if isinstance(leaf, GroupedLayer) else [leaf.integer_layer()])
    ]


def bound(layer):
    weight = layer.weight_codes.flatten(1).long() - layer.weight_zero[:, None].long()
    sides = torch.cat([weight.clamp(min=0).sum(1), -weight.clamp(max=0).sum(1)])
    return ((1 << layer.act_bits) - 1) * int(sides.max())


@pytest.mark.parametrize("dynamic", [False, True])
def test_long_sums_of_grouped_convolutions_are_refused_in_one_line(make, monkeypatch, dynamic):
    case = make.conv(groups=2)
    case = case.dynamic() if dynamic else case
    monkeypatch.setattr(formats, "MAX_SUM", 1000)
    with pytest.raises(Unsupported, match="may exceed the kernels' int32 accumulators") as caught:
        case.done()
    assert "\n" not in str(caught.value)


def test_a_layer_of_40000_inputs_is_right(make):
    case = make.linear(Bits(8, 8), shape=(2, 40_000), out=3)
    with torch.no_grad():
        case.layer.weight.fill_(1.0)
        case.x.abs_().clamp_(min=1.0)
    case.done()
    make.check(case)
    assert len(integer_layers(case.packed)) > 1
