"""Every option of a quantized layer: packed equals fake, and the integers are exact."""

import pytest
import torch

from quantarena.methods.core.affine import FAR
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import Unsupported, UserError
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.rebuild import leaf_nodes
from quantarena.methods.core.packed.nodes.row_ranges import RowScaledLayer, SampleScaledLayer
from quantarena.methods.core.packed.nodes.wrappers import MixedWidthLayer
from quantarena.methods.techniques.ranges.minmax import minmax_range

WIDTHS = [Bits(w, a) for w in (2, 3, 4, 8) for a in (4, 8)]
MORE = [*WIDTHS, Bits(1, 8), Bits(5, 6), Bits(6, 5), Bits(4, 1)]


@pytest.mark.parametrize("bits", MORE, ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
def test_plain(make, bits, symmetric):
    make.check(make.linear(bits).done(symmetric=symmetric))
    make.check(make.conv(bits, stride=2).done(symmetric=symmetric))


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_splits_read_their_own_multipliers(make, bits):
    make.check(make.linear(bits, splits=(7, 17)).mult().done())
    make.check(make.conv(bits, splits=(16, 8)).mult().done())
    make.check(make.conv(bits, splits=(16, 8), last=False).mult().done())


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_banks_follow_the_clock(make, bits):
    make.each_step(make.linear(bits).bank().done())
    make.each_step(make.conv(bits).bank().done())


def test_a_bank_without_an_announced_call_is_an_error(make):
    case = make.linear().bank().done()
    with pytest.raises(UserError, match="nobody said"):
        case.packed(case.x)
    with case.clock.at(make.calls), pytest.raises(UserError, match="calibrated for 5 calls"):
        case.packed(case.x)
    with case.clock.at(torch.tensor([0, 1])), pytest.raises(ValueError, match="announced for 3"):
        case.packed(case.x)


def test_a_bank_of_one_call_knows_no_second(make):
    case = make.linear()
    part = case.parts[0]
    part.act_quantizer.set_bank(torch.tensor([0.1]), torch.tensor([3.0]))
    case.done()
    with case.clock.at(0):
        make.check(case)
    with case.clock.at(1), pytest.raises(UserError, match="calibrated for 1 calls"):
        case.packed(case.x)


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_one_dimensional_convolutions(make, bits):
    make.check(make.conv1d(bits, stride=2, dilation=2).mult().done())
    make.check(make.conv1d(bits, splits=(8, 16)).done())
    make.check(make.conv1d(bits, groups=2).done())
    make.each_step(make.conv1d(bits).bank().low_rank().done())


@pytest.mark.parametrize("act", [4, 8])
def test_bit_maps(make, act):
    case = make.linear(Bits(8, act)).bit_map(1, 3, 8).mult().done()
    assert isinstance(case.packed, MixedWidthLayer)
    assert [leaf.metadata["weight_bits"] for leaf in leaf_nodes(case.packed)] == [1, 3, 8]
    make.check(case)
    make.check(make.conv(Bits(8, act)).bit_map(2, 4, 8).done())
    make.check(make.conv(Bits(8, act), last=False).bit_map(5, 6).done())
    make.check(make.conv(Bits(8, act), splits=(16, 8)).bit_map(2, 4).done())
    make.check(make.conv1d(Bits(8, act)).bit_map(2, 4).done(symmetric=True))
    assert isinstance(make.linear().bit_map(3).done().packed, PackedLayer)


def test_a_bit_map_of_grouped_channels_is_refused(make):
    with pytest.raises(Unsupported, match="bit map of a convolution in 2 groups"):
        make.conv(groups=2).bit_map(2, 4).done()


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_weight_groups(make, bits):
    case = make.linear(bits).weight_groups(8).mult().done()
    assert len(leaf_nodes(case.packed)) == 3
    make.check(case)
    make.check(make.conv(bits).weight_groups(12).done())
    make.check(make.conv(bits, last=False, splits=(16, 8)).weight_groups(8).done(symmetric=True))
    make.each_step(make.linear(bits).weight_groups(6).bank().done())


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_groups_of_channels(make, bits):
    make.check(make.linear(bits).groups(-1, 5).done())
    make.check(make.linear(bits).groups(-1, 3).weight_groups(8).mult().done())
    make.check(make.conv(bits).groups(1, 4).mult().done())
    make.check(make.conv(bits, last=False).groups(-3, 4).done())
    make.check(make.conv1d(bits).groups(-2, 3).done())
    make.each_step(make.conv(bits).groups(1, 3, steps=True).done())
    make.each_step(make.linear(bits).groups(-1, 3, steps=True).done())


def test_too_many_groups_of_channels_are_refused(make):
    with pytest.raises(Unsupported, match=r"40 groups .* fold them"):
        make.linear(shape=(3, 7, 48)).groups(-1, 40).done()
    with pytest.raises(Unsupported, match="in groups"):
        make.conv(groups=2).groups(1, 3).done()


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_groups_of_tokens(make, bits):
    case = make.linear(bits).groups(-2, 3).mult().done()
    assert isinstance(case.packed, RowScaledLayer)
    make.check(case)
    make.check(make.linear(bits, shape=(2, 4, 5, 24)).groups(1, 2).weight_groups(8).done())
    make.check(make.linear(bits).groups(1, 4).done(symmetric=True))
    make.each_step(make.linear(bits).groups(-2, 3, steps=True).done())


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
@pytest.mark.parametrize("distance", [3.0, 60.0, 1e5])
def test_groups_of_tokens_beyond_zero(make, bits, distance):
    """The last ranges are so far away that they are widened."""
    case = make.linear(bits).far_groups(4, distance).done()
    zero, top = case.parts[0].static.zero_point, 2**bits.act - 1
    assert float(zero.min()) < -top
    assert float(zero.max()) > 2 * top
    assert (float(zero.abs().max()) >= FAR) == (distance == 1e5)
    make.check(case)


def test_long_sums_of_far_codes_are_cut(make):
    shape = (2, 4, 4096)
    near = make.linear(Bits(8, 8), shape=shape).groups(-2, 4).done()
    far = make.linear(Bits(8, 8), shape=shape).far_groups(4, 1e5).done()
    assert near.packed.groups == 1
    assert far.packed.groups > 1
    make.check(far)


def test_token_groups_know_their_number_of_tokens(make):
    case = make.linear().groups(-2, 3).done()
    with pytest.raises(ValueError, match="another image size or token count"):
        case.packed(case.x[:, :5])


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_groups_of_pixels_where_no_kernel_mixes_them(make, bits):
    for axis in (2, -1):
        for last in (False, True):
            case = make.conv(bits, kernel_size=1, padding=0, stride=(1, 2), last=last)
            make.check(case.groups(axis, 2).mult().low_rank().done())
    make.check(make.conv1d(bits, kernel_size=1, padding=0, stride=2).groups(-1, 3).done())


def test_groups_of_pixels_under_a_kernel_are_refused(make):
    with pytest.raises(Unsupported, match="groups of pixels along axis 2"):
        make.conv().groups(2, 2).done()


@pytest.mark.parametrize("bits", MORE, ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
def test_dynamic_tokens(make, bits, symmetric):
    make.check(make.linear(bits).dynamic(symmetric=symmetric).done())
    make.check(
        make.linear(bits, shape=(5, 24)).dynamic(symmetric=symmetric).mult().done(symmetric=True)
    )
    make.check(
        make.linear(bits).dynamic(symmetric=symmetric, group=8).weight_groups(12).mult().done()
    )
    make.check(make.linear(bits).dynamic(symmetric=symmetric, group=8).done())
    make.check(make.linear(bits).dynamic(symmetric=symmetric).weight_groups(8).done())
    make.check(make.linear(bits, shape=(2, 3, 4, 24)).dynamic(symmetric=symmetric).done())
    make.check(make.linear(bits, splits=(8, 16)).dynamic(symmetric=symmetric, group=8).done())


@pytest.mark.parametrize("bits", MORE, ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
def test_dynamic_samples(make, bits, symmetric):
    case = make.conv(bits).dynamic(symmetric=symmetric).mult().done()
    assert isinstance(case.packed, SampleScaledLayer)
    x = torch.cat([case.x, case.x + 2, case.x[:1] - 9])
    make.check(case, x.to(memory_format=torch.channels_last))
    make.check(
        make.conv(bits, last=False, stride=2).dynamic(symmetric=symmetric).weight_groups(8).done()
    )
    make.check(make.conv(bits, groups=2).dynamic(symmetric=symmetric).done())


def test_dynamic_convolutions_without_a_packed_form_are_refused(make):
    with pytest.raises(Unsupported, match="1-d convolution"):
        make.conv1d().dynamic().done()
    with pytest.raises(Unsupported, match="dynamic channel groups"):
        make.conv().dynamic(group=8).done()
    with pytest.raises(Unsupported, match="K-groups"):
        make.conv(groups=2).dynamic().weight_groups(6).done()


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_low_rank_branches(make, bits):
    make.check(make.linear(bits).mult().low_rank().done())
    make.check(make.conv(bits, stride=2, dilation=2).mult().low_rank().done())
    make.check(make.conv1d(bits, stride=2).mult().low_rank().done())


@pytest.mark.parametrize("weight", [1, 2, 3, 4, 5, 8])
def test_weight_only(make, weight):
    bits = Bits(weight, 16)
    case = make.linear(bits).mult().done()
    assert case.packed.backend == "weight-only"
    make.check(case)
    make.check(make.linear(bits).weight_groups(8).low_rank().done(symmetric=True))
    make.check(make.conv(bits, splits=(16, 8)).mult().weight_groups(4).done())
    make.check(make.conv(bits, groups=2, stride=2).done())
    make.check(make.conv1d(bits).done())
    make.check(make.linear(Bits(8, 16)).bit_map(2, weight).done())


def test_float_weights_are_refused(make):
    with pytest.raises(Unsupported, match="float weight"):
        make.linear(Bits(16, 8)).done()


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
class TestCombinations:
    def test_split_bank_multiplier(self, make, bits):
        make.each_step(make.conv(bits, splits=(16, 8)).mult().bank().done())
        make.each_step(make.linear(bits, splits=(16, 8)).mult().bank().low_rank().done())

    def test_bit_map_bank(self, make, bits):
        make.each_step(make.conv(bits).bit_map(2, 3, 8).bank().mult().done())
        make.each_step(make.conv(bits, splits=(16, 8)).bit_map(2, 8).bank().done())

    def test_low_rank_multiplier_dynamic_groups(self, make, bits):
        make.check(
            make.linear(bits)
            .mult()
            .low_rank()
            .dynamic(symmetric=True, group=8)
            .weight_groups(8)
            .done()
        )

    def test_a_bank_beside_a_part_without_one(self, make, bits):
        case = make.linear(bits, splits=(16, 8)).bank()
        case.parts[1].act_quantizer.set_params(minmax_range(case.x, bits.act))
        make.each_step(case.done())
