"""Every option of a quantized layer: packed equals fake, and the integers are exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantarena.methods.core.affine import affine_params
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import Unsupported, UserError
from quantarena.methods.core.kernels import oracle
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.packed.lower import pack_layer
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.rebuild import build, leaves
from quantarena.methods.core.packed.nodes.row_ranges import RowScaledLayer, SampleScaledLayer
from quantarena.methods.core.packed.nodes.weight_only import WeightOnlyLayer
from quantarena.methods.core.packed.nodes.wrappers import MixedWidthLayer
from quantarena.methods.core.quantizers.activation import DynamicActQuantizer
from quantarena.methods.techniques.ranges.minmax import minmax_range

WIDTHS = [Bits(w, a) for w in (2, 3, 4, 8) for a in (4, 8)]
MORE = [*WIDTHS, Bits(1, 8), Bits(5, 6), Bits(6, 5), Bits(4, 1)]
STEPS = 5


class Maker:
    """A quantized layer and inputs that fit it, options added one by one."""

    def __init__(self, module, bits, x, *, splits=(), seed=0):
        torch.manual_seed(seed)
        self.clock = CallClock()
        self.layer = QuantLayer(module, bits, splits, self.clock)
        self.x, self.bits = x, bits
        self.parts = self.layer.part_list()

    def part_input(self, part):
        return self.layer.part_input(part, self.layer.scaled(self.x))

    def mult(self):
        self.layer.scale_input(torch.rand(self.layer.in_channels) * 2 + 0.3)
        return self

    def bank(self):
        for part in self.parts:
            low, high = self.part_input(part).aminmax()
            factor = torch.linspace(0.4, 1.3, STEPS)
            found = affine_params(low * factor, high * factor, self.bits.act, False)
            part.act_quantizer.set_bank(found.scale, found.zero_point)
        return self

    def groups(self, axis, count, *, steps=False):
        for part in self.parts:
            x = self.part_input(part)
            ids = torch.randint(count, (x.shape[axis],))
            ids[:count] = torch.arange(count)
            low, high = x.movedim(axis, 0).flatten(1).aminmax(dim=1)
            lows = torch.stack([low[ids == g].min() for g in range(count)])
            highs = torch.stack([high[ids == g].max() for g in range(count)])
            if steps:
                factor = torch.linspace(0.4, 1.3, STEPS)[:, None]
                lows, highs = lows * factor, highs * factor
            found = affine_params(lows, highs, self.bits.act, False)
            part.act_quantizer.set_groups(axis, ids, found.scale, found.zero_point)
        return self

    def dynamic(self, *, symmetric=False, group=0):
        for part in self.parts:
            part.act_quantizer = DynamicActQuantizer(
                self.bits.act, symmetric=symmetric, group=group
            )
        return self

    def bit_map(self, *widths):
        for part in self.parts:
            rows = self.layer.weight.shape[0]
            chosen = torch.tensor(widths)[torch.randint(len(widths), (rows,))]
            chosen[: len(widths)] = torch.tensor(widths)
            part.weight_quantizer.set_bit_map(chosen)
        return self

    def weight_groups(self, group):
        for part in self.parts:
            part.weight_quantizer.group = group
        return self

    def low_rank(self, rank=2):
        weight = self.layer.weight
        down = torch.randn(rank, *weight.shape[1:]) * 0.1
        self.layer.set_low_rank(down, torch.randn(weight.shape[0], rank))
        return self

    def exclude(self, count, *, constant=False):
        outputs = torch.randn(count, self.layer.weight.shape[0]) if constant else None
        self.layer.exclude_tokens(count, outputs)
        return self

    def done(self, *, symmetric=False):
        self.layer.set_weight_ranges(minmax_range, symmetric=symmetric)
        for part in self.parts:
            if part.static is not None and part.static.scale.numel() == 0:
                part.static.set_params(minmax_range(self.part_input(part), self.bits.act))
        self.layer.freeze()
        self.packed = pack_layer(self.layer)
        return self


def linear(bits=None, *, shape=(3, 7, 24), out=10, **options):
    torch.manual_seed(sum(shape))
    x = torch.randn(shape) * (torch.rand(shape[-1]) * 3 + 0.2) + 0.3
    return Maker(nn.Linear(shape[-1], out), bits or Bits(4, 8), x, **options)


def conv(bits=None, *, shape=(3, 24, 7, 6), out=10, last=True, splits=(), **options):
    torch.manual_seed(sum(shape))
    x = torch.randn(shape) * (torch.rand(shape[1]) * 3 + 0.2).view(-1, 1, 1) + 0.3
    x = x.to(memory_format=torch.channels_last) if last else x
    options = {"kernel_size": 3, "padding": 1, **options}
    return Maker(nn.Conv2d(shape[1], out, **options), bits or Bits(4, 8), x, splits=splits)


def conv1d(bits=None, *, shape=(3, 24, 9), out=10, splits=(), **options):
    torch.manual_seed(sum(shape))
    options = {"kernel_size": 3, "padding": 1, **options}
    module = nn.Conv1d(shape[1], out, **options)
    return Maker(module, bits or Bits(4, 8), torch.randn(shape) + 0.3, splits=splits)


@torch.no_grad()
def gap(case, x=None):
    """Packed against fake; outputs of rows are alike in shape and memory format."""
    x = case.x if x is None else x
    fake, packed = case.layer(x), case.packed(x)
    assert packed.shape == fake.shape
    assert float(fake.std()) > 1e-3
    return float((fake - packed).abs().max() / fake.abs().max())


def check(case, x=None):
    """Packed equals fake, every integer that a leaf makes is exact, and the tree comes back."""
    seen = []
    handles = [watch(leaf, seen) for leaf in leaves(case.packed)]
    try:
        assert gap(case, x) <= 1e-5
        with pytest.MonkeyPatch.context() as patch:  # integers show when taken apart
            patch.setattr(RowScaledLayer, "run", RowScaledLayer.by_parts)
            patch.setattr(MixedWidthLayer, "run", MixedWidthLayer.by_parts)
            patch.setattr(MixedWidthLayer, "in_place", False)
            assert gap(case, x) <= 1e-5
    finally:
        for undo in handles:
            undo()
    for leaf, inputs, step in seen:
        want = oracle.accumulators(leaf.integer_layer(), inputs, step)
        assert torch.equal(leaf.accumulators(inputs, step).long(), want)
    assert seen or isinstance(leaves(case.packed)[0], WeightOnlyLayer)
    again = build(case.packed.describe(), dict(case.packed.state_dict()))
    again.set_clock(case.clock)
    x = case.x if x is None else x
    assert torch.equal(again(x), case.packed(x))
    assert again.weight_shape == tuple(case.layer.weight.shape)


def watch(leaf, seen):
    """Note what a leaf is run on."""
    if isinstance(leaf, WeightOnlyLayer):
        return lambda: None
    plain = leaf._run

    def run(x, step, into, flags):
        seen.append((leaf, x.clone(), step))
        return plain(x, step, into, flags)

    leaf._run = run

    def undo():
        del leaf._run

    return undo


def each_step(case):
    """Every call alone, mixed calls in one batch, calls for folded batches."""
    outputs = []
    for step in range(STEPS):
        with case.clock.at(step):
            check(case)
            outputs.append(case.packed(case.x))
    assert not torch.equal(outputs[0], outputs[-1])
    with case.clock.at(torch.tensor([4, 0, 2])):
        check(case)
        mixed = case.packed(case.x)
    for row, step in enumerate((4, 0, 2)):
        assert (mixed[row] - outputs[step][row]).abs().max() <= 1e-5 * mixed.abs().max()
    with case.clock.at(torch.tensor([1, 3])):
        check(case, torch.cat([case.x, case.x]))


@pytest.mark.parametrize("bits", MORE, ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
def test_plain(bits, symmetric):
    check(linear(bits).done(symmetric=symmetric))
    check(conv(bits, stride=2).done(symmetric=symmetric))


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_splits_read_their_own_multipliers(bits):
    check(linear(bits, splits=(7, 17)).mult().done())
    check(conv(bits, splits=(16, 8)).mult().done())
    check(conv(bits, splits=(16, 8), last=False).mult().done())


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_banks_follow_the_clock(bits):
    each_step(linear(bits).bank().done())
    each_step(conv(bits).bank().done())


def test_a_bank_without_an_announced_call_is_an_error():
    case = linear().bank().done()
    with pytest.raises(UserError, match="nobody said"):
        case.packed(case.x)
    with case.clock.at(STEPS), pytest.raises(UserError, match="calibrated for 5 calls"):
        case.packed(case.x)
    with case.clock.at(torch.tensor([0, 1])), pytest.raises(ValueError, match="announced for 3"):
        case.packed(case.x)


def test_a_bank_of_one_call_knows_no_second():
    case = linear()
    part = case.parts[0]
    part.act_quantizer.set_bank(torch.tensor([0.1]), torch.tensor([3.0]))
    case.done()
    with case.clock.at(0):
        check(case)
    with case.clock.at(1), pytest.raises(UserError, match="calibrated for 1 calls"):
        case.packed(case.x)


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_one_dimensional_convolutions(bits):
    check(conv1d(bits, stride=2, dilation=2).mult().done())
    check(conv1d(bits, splits=(8, 16)).done())
    check(conv1d(bits, groups=2).done())
    each_step(conv1d(bits).bank().low_rank().done())


@pytest.mark.parametrize("act", [4, 8])
def test_bit_maps(act):
    case = linear(Bits(8, act)).bit_map(1, 3, 8).mult().done()
    assert isinstance(case.packed, MixedWidthLayer)
    assert [leaf.metadata["weight_bits"] for leaf in leaves(case.packed)] == [1, 3, 8]
    check(case)
    check(conv(Bits(8, act)).bit_map(2, 4, 8).done())
    check(conv(Bits(8, act), last=False).bit_map(5, 6).done())
    check(conv(Bits(8, act), splits=(16, 8)).bit_map(2, 4).done())
    check(conv1d(Bits(8, act)).bit_map(2, 4).done(symmetric=True))
    assert isinstance(linear().bit_map(3).done().packed, PackedLayer)


def test_a_bit_map_of_grouped_channels_is_refused():
    with pytest.raises(Unsupported, match="bit map of a convolution in 2 groups"):
        conv(groups=2).bit_map(2, 4).done()


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_weight_groups(bits):
    case = linear(bits).weight_groups(8).mult().done()
    assert len(leaves(case.packed)) == 3
    check(case)
    check(conv(bits).weight_groups(12).done())
    check(conv(bits, last=False, splits=(16, 8)).weight_groups(8).done(symmetric=True))
    each_step(linear(bits).weight_groups(6).bank().done())


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_groups_of_channels(bits):
    check(linear(bits).groups(-1, 5).done())
    check(linear(bits).groups(-1, 3).weight_groups(8).mult().done())
    check(conv(bits).groups(1, 4).mult().done())
    check(conv(bits, last=False).groups(-3, 4).done())
    check(conv1d(bits).groups(-2, 3).done())
    each_step(conv(bits).groups(1, 3, steps=True).done())
    each_step(linear(bits).groups(-1, 3, steps=True).done())


def test_too_many_groups_of_channels_are_refused():
    with pytest.raises(Unsupported, match=r"40 groups .* fold them"):
        linear(shape=(3, 7, 48)).groups(-1, 40).done()
    with pytest.raises(Unsupported, match="in groups"):
        conv(groups=2).groups(1, 3).done()


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_groups_of_tokens(bits):
    case = linear(bits).groups(-2, 3).mult().done()
    assert isinstance(case.packed, RowScaledLayer)
    check(case)
    check(linear(bits, shape=(2, 4, 5, 24)).groups(1, 2).weight_groups(8).done())
    check(linear(bits).groups(1, 4).done(symmetric=True))
    each_step(linear(bits).groups(-2, 3, steps=True).done())


def test_token_groups_know_their_number_of_tokens():
    case = linear().groups(-2, 3).done()
    with pytest.raises(ValueError, match="another image size or token count"):
        case.packed(case.x[:, :5])


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_groups_of_pixels_where_no_kernel_mixes_them(bits):
    for axis in (2, -1):
        for last in (False, True):
            case = conv(bits, kernel_size=1, padding=0, stride=(1, 2), last=last)
            check(case.groups(axis, 2).mult().low_rank().done())
    check(conv1d(bits, kernel_size=1, padding=0, stride=2).groups(-1, 3).done())


def test_groups_of_pixels_under_a_kernel_are_refused():
    with pytest.raises(Unsupported, match="groups of pixels along axis 2"):
        conv().groups(2, 2).done()


@pytest.mark.parametrize("bits", MORE, ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
def test_dynamic_tokens(bits, symmetric):
    check(linear(bits).dynamic(symmetric=symmetric).done())
    check(linear(bits, shape=(5, 24)).dynamic(symmetric=symmetric).mult().done(symmetric=True))
    check(linear(bits).dynamic(symmetric=symmetric, group=8).weight_groups(12).mult().done())
    check(linear(bits).dynamic(symmetric=symmetric, group=8).done())
    check(linear(bits).dynamic(symmetric=symmetric).weight_groups(8).done())
    check(linear(bits, shape=(2, 3, 4, 24)).dynamic(symmetric=symmetric).done())
    check(linear(bits, splits=(8, 16)).dynamic(symmetric=symmetric, group=8).done())


@pytest.mark.parametrize("bits", MORE, ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
def test_dynamic_samples(bits, symmetric):
    case = conv(bits).dynamic(symmetric=symmetric).mult().done()
    assert isinstance(case.packed, SampleScaledLayer)
    x = torch.cat([case.x, case.x + 2, case.x[:1] - 9])
    check(case, x.to(memory_format=torch.channels_last))
    check(conv(bits, last=False, stride=2).dynamic(symmetric=symmetric).weight_groups(8).done())
    check(conv(bits, groups=2).dynamic(symmetric=symmetric).done())


def test_dynamic_convolutions_without_a_packed_form_are_refused():
    with pytest.raises(Unsupported, match="1-d convolution"):
        conv1d().dynamic().done()
    with pytest.raises(Unsupported, match="dynamic channel groups"):
        conv().dynamic(group=8).done()
    with pytest.raises(Unsupported, match="K-groups"):
        conv(groups=2).dynamic().weight_groups(6).done()


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_low_rank_branches(bits):
    check(linear(bits).mult().low_rank().done())
    check(conv(bits, stride=2, dilation=2).mult().low_rank().done())
    check(conv1d(bits, stride=2).mult().low_rank().done())


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
@pytest.mark.parametrize("constant", [False, True])
def test_excluded_tokens(bits, constant):
    check(linear(bits).mult().exclude(1, constant=constant).done())
    check(linear(bits).low_rank().mult().exclude(2, constant=constant).done())
    check(linear(bits).groups(-2, 3).exclude(2, constant=constant).done())
    check(linear(bits, shape=(7, 24)).exclude(2, constant=constant).done())
    check(linear(bits).groups(1, 3).exclude(1).done())
    check(linear(bits, shape=(2, 3, 4, 24)).dynamic().exclude(1).done())


def test_excluded_tokens_cost_the_weight_that_they_need():
    sizes = {}
    for name, case in {
        "plain": linear(),
        "float": linear().exclude(1),
        "constant": linear().exclude(1, constant=True),
    }.items():
        packed = case.done().packed
        sizes[name] = sum(b.numel() * b.element_size() for b in packed.buffers())
    assert sizes["float"] == sizes["plain"] + 4 * (10 * 24 + 10)
    assert sizes["constant"] == sizes["plain"] + 4 * 10


@pytest.mark.parametrize("weight", [1, 2, 3, 4, 5, 8])
def test_weight_only(weight):
    bits = Bits(weight, 16)
    case = linear(bits).mult().done()
    assert case.packed.backend == "weight-only"
    check(case)
    check(linear(bits).weight_groups(8).low_rank().done(symmetric=True))
    check(conv(bits, splits=(16, 8)).mult().weight_groups(4).done())
    check(conv(bits, groups=2, stride=2).done())
    check(conv1d(bits).done())
    check(linear(Bits(8, 16)).bit_map(2, weight).exclude(1).done())


def test_float_weights_are_refused():
    with pytest.raises(Unsupported, match="float weight"):
        linear(Bits(16, 8)).done()


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
class TestCombinations:
    def test_split_bank_multiplier(self, bits):
        each_step(conv(bits, splits=(16, 8)).mult().bank().done())
        each_step(linear(bits, splits=(16, 8)).mult().bank().low_rank().done())

    def test_bit_map_bank(self, bits):
        each_step(conv(bits).bit_map(2, 3, 8).bank().mult().done())
        each_step(conv(bits, splits=(16, 8)).bit_map(2, 8).bank().done())

    def test_low_rank_multiplier_dynamic_groups(self, bits):
        check(
            linear(bits).mult().low_rank().dynamic(symmetric=True, group=8).weight_groups(8).done()
        )

    def test_excluded_bank(self, bits):
        each_step(linear(bits).bank().exclude(1).mult().done())
        each_step(linear(bits).groups(-2, 2, steps=True).exclude(2).low_rank().done())

    def test_a_bank_beside_a_part_without_one(self, bits):
        case = linear(bits, splits=(16, 8)).bank()
        case.parts[1].act_quantizer.set_params(minmax_range(case.x, bits.act))
        each_step(case.done())


def int_codes(quantizer):
    """(O, K) codes less zero points, int64."""
    scale = quantizer._view(quantizer.codes.long())
    return quantizer._back(scale - quantizer.zero_point.long())


@pytest.mark.parametrize("bits", MORE, ids=str)
@pytest.mark.parametrize("group", [0, 8])
def test_integers_of_dynamic_tokens_are_those_of_the_formula(bits, group):
    case = linear(bits).dynamic(group=group).done()
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
def test_integers_of_dynamic_samples_are_those_of_the_formula(bits, symmetric):
    case = conv(bits).dynamic(symmetric=symmetric).done()
    params = case.parts[0].act_quantizer.params(case.x)
    codes = (torch.round(case.x * (1 / params.scale)) + params.zero_point).clamp(0, 2**bits.act - 1)
    centred = (codes - params.zero_point).double()
    weight = int_codes(case.parts[0].weight_quantizer).double()
    want = nn.functional.conv2d(centred, weight, padding=1).long()
    (got,) = case.packed.accumulators(case.x)
    assert torch.equal(got.long(), want)


def test_rows_in_several_chunks_are_the_same(monkeypatch):
    from quantarena.methods.core.packed.nodes import row_ranges

    case = linear().dynamic(group=8).done()
    whole = case.packed(case.x)
    monkeypatch.setattr(row_ranges, "_CHUNK", 60)
    assert torch.equal(case.packed(case.x), whole)


def test_a_split_keeps_the_memory_format():
    for case in (conv().groups(1, 3).done(), conv().bit_map(2, 4).done(), conv().dynamic().done()):
        assert case.packed(case.x).is_contiguous(memory_format=torch.channels_last)
        assert case.packed(case.x.contiguous()).is_contiguous()


def test_tables_of_two_lengths_are_refused():
    case = linear(splits=(16, 8)).bank()
    case.parts[1].act_quantizer.set_bank(torch.ones(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"tables of \[3, 5\] sampler calls"):
        case.done()


def test_parts_are_added_in_place(monkeypatch):
    case = linear(splits=(16, 8)).done()
    assert isinstance(case.packed, SplitPackedLayer)
    called = []
    plain = PackedLayer.add_to
    monkeypatch.setattr(PackedLayer, "add_to", lambda *a: called.append(1) or plain(*a))
    check(case)
    assert called


@st.composite
def cases(draw):
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
        case = linear(bits, shape=(batch, *tokens, channels), out=out, splits=splits, seed=seed)
    elif kind == "conv":
        shape = (batch, channels, size, draw(st.integers(1, 5)))
        case = conv(bits, shape=shape, out=out, last=draw(st.booleans()), **options)
    else:
        case = conv1d(bits, shape=(batch, channels, size), out=out, **options)
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
    if kind == "linear" and case.x.dim() > 2 and draw(st.booleans()) and case.x.shape[-2] > 1:
        case.exclude(1, constant=draw(st.booleans()))
    return case.done(symmetric=draw(st.booleans()))


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_options_of_any_layer_go_together(case):
    with torch.no_grad():
        fake, packed = case.layer(case.x), case.packed(case.x)
    assert packed.shape == fake.shape
    assert float((fake - packed).abs().max()) <= 1e-5 * float(fake.abs().max())
    clear = min(*case.x.shape, *packed.shape) > 1  # an axis of one can lie anywhere
    if clear and case.layer.spatial == 2 and oracle.channels_last(case.x):
        assert packed.is_contiguous(memory_format=torch.channels_last)
    again = build(case.packed.describe(), dict(case.packed.state_dict()))
    assert torch.equal(again(case.x), packed)
