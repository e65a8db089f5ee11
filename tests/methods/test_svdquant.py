"""SVDQuant: the function stays, the branch and the smoothing win where outliers are."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import FP, Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.options.low_rank import LowRankBranch
from quantarena.methods.core.packed.lowering.lower import pack_layer
from quantarena.methods.core.packed.pack import observe, pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.quantizers.activation import DynamicActQuantizer
from quantarena.methods.info import Effort
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.svdquant import SvdQuant, exponents
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.scaling.low_rank import product
from quantarena.methods.testing.conformance import check

SMALL = Effort(16, 0)


class Layers(nn.Module):
    """Three linears, the middle one in question, on 128 channels."""

    gains = torch.ones(128)

    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Linear(4, 128), nn.Linear(128, 96)
        self.last = nn.Linear(96, 4)

    def forward(self, sample, timestep=None, return_dict=True):
        x = torch.tanh(self.first(sample.flatten(2).mT)) * self.gains
        return (self.last(self.middle(x) / 8).mT.reshape(sample.shape),)


class Strong(Layers):
    """A few directions of the weight are a hundred times stronger than the rest."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            strong = torch.randn(96, 3) @ torch.randn(3, 128)
            self.middle.weight += strong * strong.abs().amax(1, keepdim=True).reciprocal() * 20


class Outliers(Layers):
    """One input channel of each group of 64 is a hundred times larger."""

    gains = torch.where(torch.arange(128) % 64 == 5, 100.0, 1.0)


def variant(**off):
    """SVDQuant with some of its ideas set otherwise."""
    return lambda: SvdQuant(SvdQuant.Options(**off))


def test_a_branch_beats_rtn_where_few_directions_are_strong(judged):
    network, bits = Strong(), Bits(4, 8)
    made, ours = judged(SvdQuant, network, bits)
    assert judged(RoundToNearest, network, bits)[1] >= 20 * ours
    assert judged(variant(rank=0), network, bits)[1] >= 10 * ours, "the gain is not the branch's"
    before, _, after = made.notes["branches"]["middle"]["errors"]
    assert after <= before


def test_smoothing_and_branch_together_beat_rtn_where_inputs_have_outliers(judged):
    network, bits = Outliers(), Bits(4, 4)
    ours = judged(SvdQuant, network, bits)[1]
    assert judged(RoundToNearest, network, bits)[1] >= 10 * ours
    assert judged(variant(smoothing=False), network, bits)[1] >= 3 * ours
    assert judged(variant(rank=0), network, bits)[1] >= 1.5 * ours, "outliers stay in the weight"


def test_refined_branches_are_not_worse(judged):
    network = Layers()
    plain, refined = (judged(variant(rounds=n), network, Bits(3, 8)) for n in (1, 100))
    note = refined[0].notes["branches"]["middle"]
    assert note["rounds"] > 2
    assert note["errors"][2] < note["errors"][1]
    assert refined[1] < plain[1]


def test_branch_and_rest_are_the_smoothed_weight(probe):
    """W f = L + R, and X / f meets it: with quantizers off nothing has changed."""
    model = variant(grid=2, rounds=2)().run(probe.context(Bits(4, 4), "paper", SMALL))
    smoothed = 0
    for name, layer in model.layers.items():
        if layer.option(LowRankBranch) is None:
            continue
        whole = layer.weight + product(
            layer.option(LowRankBranch).down, layer.option(LowRankBranch).up
        )
        original = probe.model.get_submodule(name).weight
        if layer.input_factor is not None:
            smoothed += 1
            whole = whole * layer.input_factor.reshape(1, -1, *[1] * layer.spatial)
        assert torch.allclose(whole, original, atol=1e-5 * float(original.abs().max()))
    assert smoothed > 0


def test_without_branch_and_smoothing_it_is_plain_groups(judged):
    """Rank 0 is round-to-nearest of symmetric groups of 64 with run-time ranges."""
    network, bits = Layers(), Bits(4, 4)
    made = judged(variant(rank=0, smoothing=False), network, bits)[0]
    layer = made.layers["middle"]
    assert layer.options == ()
    other = QuantLayer(network.middle, bits)
    part = other.only_part
    part.weight_quantizer.group_size = 64
    other.set_weight_ranges(minmax_range, symmetric=True)
    part.act_quantizer = DynamicActQuantizer(4, symmetric=True, group_size=64)
    x = torch.randn(7, 128)
    assert torch.equal(layer(x), other(x))


def test_full_rank_is_floating_point(judged):
    network = Layers()
    full = judged(variant(rank=999, share=1.0, smoothing=False), network, Bits(2, 4))[0]
    layer, x = full.layers["middle"], torch.randn(7, 128)
    with torch.no_grad():
        target = network.middle(x)
        gap = (layer(x) - target).abs().max() / target.abs().max()
    assert float(gap) <= 1e-5


@pytest.mark.parametrize("bits", [Bits(4, 4), Bits(2, 8)])
def test_integers_are_the_fake_path(probe, bits):
    made = variant(grid=2, rounds=2)().run(probe.context(bits, "paper", SMALL))
    packed = pack(made)
    assert packed.backend == "packed"
    assert parity(made, packed, probe.heldout).max_rel <= 1e-5


def test_the_branch_is_counted(transformer):
    seen = []
    for rank in (0, 32):
        made = variant(rank=rank, grid=2)().run(transformer.context(Bits(4, 4), "paper", SMALL))
        seen.append(observe(made, pack(made), transformer.model))
    without, branch = seen
    assert (without.branch_macs, branch.branch_macs > 0) == (0, True)
    assert without.bops < branch.bops
    assert without.packed_bytes < branch.packed_bytes


def test_groups_of_64_pack(judged):
    made = judged(SvdQuant, Outliers(), Bits(4, 4))[0]
    layer = made.layers["middle"]
    part = layer.only_part
    assert (part.weight_quantizer.group_size, part.act_quantizer.group_size) == (64, 64)
    assert part.weight_quantizer.scale.numel() == 96 * 2
    x = torch.randn(3, 9, 128) * Outliers.gains
    fake, packed = layer(x), pack_layer(layer)(x)
    assert float((fake - packed).abs().max() / fake.abs().max()) <= 1e-5


def test_unsigned_codes_are_signed_ones_of_the_shifted_input():
    """What the code does after GELU: shift up, unsigned codes, ``-shift * rowsum(Q(W))``."""
    weight, x = torch.randn(12, 64), torch.nn.functional.gelu(torch.randn(5, 64))
    quantizer = DynamicActQuantizer(4, symmetric=False, group_size=64)
    codes, params = quantizer.codes(x)
    shift = params.zero_point * params.scale  # (5, 1, 1), a whole number of steps
    unsigned = (codes * params.scale.squeeze(-1)) @ weight.T
    reference = unsigned - shift.squeeze(-1) * weight.sum(1)
    assert torch.allclose(quantizer(x) @ weight.T, reference, atol=1e-5)
    assert float(shift.max()) == pytest.approx(0.171875, abs=float(params.scale.max()) / 2 + 0.01)
    signed = DynamicActQuantizer(4, symmetric=True, group_size=64)
    assert (quantizer(x) - x).square().mean() < 0.5 * (signed(x) - x).square().mean()


def test_tokens_after_gelu_get_unsigned_codes(transformer):
    made = SvdQuant().run(transformer.context(Bits(4, 4), "paper", SMALL))
    signs = {
        name: part.act_quantizer.symmetric
        for name, layer in made.layers.items()
        for part in layer.parts
        if isinstance(part.act_quantizer, DynamicActQuantizer)
    }
    assert not any(value for name, value in signs.items() if name.endswith("ff.net.2"))
    assert all(value for name, value in signs.items() if name.endswith("attn1.to_q"))
    signed = variant(one_sided=False)().run(transformer.context(Bits(4, 4), "paper", SMALL))
    assert signed.layers["transformer_blocks.0.ff.net.2"].only_part.act_quantizer.symmetric


def test_a_token_does_not_depend_on_others(judged):
    layer = judged(SvdQuant, Outliers(), Bits(4, 4))[0].layers["middle"]
    x = torch.randn(6, 128)
    alone = layer(x[:1])
    x[1:] *= 50
    assert torch.allclose(layer(x)[:1], alone, atol=1e-5 * float(alone.abs().max()))


def test_layers_that_the_policy_protects_keep_their_weight(pixel):
    made = SvdQuant().run(pixel.context(Bits(4, 4), "paper", SMALL))
    eight = {n for n, layer in made.layers.items() if layer.bits.weight == 8}
    assert eight
    assert eight.isdisjoint(made.notes["branches"])
    for name in eight:
        assert torch.equal(made.layers[name].weight, pixel.model.get_submodule(name).weight)


def test_ranks_are_an_eighth_of_the_smaller_side():
    def rank(method, *shape):
        return method().rank_of(QuantLayer(nn.Linear(*shape), Bits(4, 4)))

    assert [rank(SvdQuant, *s) for s in ((64, 512), (512, 128), (3072, 3072))] == [8, 16, 32]
    assert rank(variant(share=1.0), 64, 64) == 32


def test_the_grid_at_20_is_the_papers():
    pairs = list(exponents(20))
    assert len(pairs) == 2 * 19
    assert pairs[:2] == [(0.05, 0.0), (0.05, 0.95)]
    assert {round(a * 20) for a, _ in pairs} == set(range(1, 20))


def test_published_policy_keeps_what_the_release_skips(conditional):
    context = replace(conditional.context(Bits(4, 4), "paper", SMALL), policy=SvdQuant.published)
    made = SvdQuant().run(context)
    roles = {conditional.graph.layers[name].role.value for name in made.layers}
    assert roles.isdisjoint({"input", "output", "time_embed", "emb_proj", "shortcut", "upsample"})
    assert {"qkv", "ff"} <= roles


@pytest.mark.parametrize("bits", [FP, Bits(4, 16), Bits(1, 8)])
def test_other_widths_are_unsupported(pixel, bits):
    with pytest.raises(Unsupported, match="svdquant does not quantize"):
        SvdQuant().run(pixel.context(bits, "paper", SMALL))


class Grouped(nn.Module):
    """A convolution in groups between two pointwise ones."""

    def __init__(self):
        super().__init__()
        self.inlet, self.outlet = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 4, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)

    def forward(self, sample, timestep=None, return_dict=True):
        return (self.outlet(torch.relu(self.grouped(self.inlet(sample)))),)


def test_convolutions_in_groups_have_no_branch(judged):
    made, error = judged(SvdQuant, Grouped(), Bits(4, 8))
    assert made.layers["grouped"].option(LowRankBranch) is None
    assert "grouped" not in made.notes["branches"]
    assert error < 0.1


@pytest.mark.slow
def test_conformance():
    results = check("svdquant", effort=Effort(samples=8, iterations=1))
    assert {(r.name, r.model): r.detail for r in results if not r.passed} == {}
