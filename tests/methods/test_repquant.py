"""RepQuant: the fold wins where channels differ, codes are the channel-wise ones, attention too."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.methods.core.affine import quantize
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.packed.attention_parity import attention_parity
from quantarena.methods.core.packed.pack import observe, pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.quantizers.log import LogQuantizer
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.info import Effort
from quantarena.methods.repquant import RepQuant, output_gram
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.testing.conformance import check

IMBALANCE = 30.0


class Normed(nn.Module):
    """Tokens through a LayerNorm to two linears; ``gap`` times between its channels' ranges."""

    def __init__(self, gap=IMBALANCE, width=64):
        super().__init__()
        self.first, self.norm = nn.Linear(4, width), nn.LayerNorm(width)
        self.one, self.two = nn.Linear(width, 8, bias=False), nn.Linear(width, 8)
        self.last = nn.Linear(8, 4)
        gains = torch.logspace(0, 1, width) ** torch.tensor(gap).log10()
        with torch.no_grad():
            self.norm.weight *= gains
            self.norm.bias.uniform_(-1, 1).mul_(gains)
            for layer in (self.one, self.two):
                layer.weight /= gains

    def forward(self, sample, timestep=None, return_dict=True):
        x = self.norm(self.first(sample.flatten(2).transpose(1, 2)))
        y = torch.tanh(self.one(x)) + torch.tanh(self.two(x))
        return (self.last(y).transpose(1, 2).reshape(sample.shape),)


class Modulated(Normed):
    """The same with the gains in a linear that modulates the norm, as in a DiT."""

    def __init__(self, gap=IMBALANCE, width=64):
        super().__init__(gap, width)
        self.maker = nn.Linear(1, 3 * width)
        with torch.no_grad():
            self.maker.weight.mul_(0.01)
            self.maker.bias[:width] = self.norm.bias
            self.maker.bias[width : 2 * width] = self.norm.weight - 1
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, sample, timestep=None, return_dict=True):
        shift, gain, gate = self.maker(timestep.reshape(-1, 1)).chunk(3, dim=1)
        x = self.norm(self.first(sample.flatten(2).transpose(1, 2)))
        x = x * (1 + gain[:, None]) + shift[:, None]
        y = torch.tanh(self.one(x)) + torch.tanh(self.two(x)) * (1 + gate[:, None, :8])
        return (self.last(y).transpose(1, 2).reshape(sample.shape),)


def sampled():
    """Inputs that the network takes, four calls of two images."""
    sample = torch.randn(4, 2, 4, 6, 6, generator=torch.Generator().manual_seed(4))
    return Trajectory(sample, torch.arange(4).float(), {})


def variant(**off):
    """RepQuant with some of its ideas set otherwise."""
    return lambda: RepQuant(RepQuant.Options(**off))


@pytest.mark.parametrize("network", [Normed, Modulated])
def test_planted_imbalance_is_folded_away(judged, network):
    network = network()
    made, folded = judged(RepQuant, network, Bits(8, 4))
    rtn = judged(RoundToNearest, network, Bits(8, 4))[1]
    without = judged(variant(fold=False), network, Bits(8, 4))[1]
    assert rtn >= 5.0 * folded
    assert without >= 5.0 * folded, "the gain is not the fold's"
    (site,) = made.notes["folds"].values()
    assert site["readers"] == ["one", "two"]
    assert site["imbalance"] > IMBALANCE / 2
    assert made.notes["fold_moves"] <= 1e-5


def test_no_imbalance_no_harm(judged):
    network = Normed(gap=1.0)
    folded, without = (
        judged(method, network, Bits(8, 4))[1] for method in (RepQuant, variant(fold=False))
    )
    assert folded <= 1.2 * without


def test_readers_of_one_norm_share_the_range_and_codes_are_channelwise(judged):
    network = Normed()
    made = judged(variant(clipping=False), network, Bits(8, 4))[0]
    one, two = (made.layers[name].only_part.static for name in ("one", "two"))
    assert torch.equal(one.scale, two.scale)
    assert float(one.zero_point) == round(float(one.zero_point))
    assert 0 <= float(one.zero_point) <= 15
    # the folded norm's codes are the old norm's output under a range for each channel
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(5))
    ratio = network.norm.weight / made.module.norm.weight  # r1
    scale = ratio * one.scale
    zero = (made.module.norm.bias * ratio - network.norm.bias) / scale + one.zero_point
    assert torch.allclose(zero, zero.round(), atol=1e-3), "integer zero points by channel"
    expected = (torch.round(network.norm(x) / scale) + zero.round()).clamp(0, 15)
    found = quantize(made.module.norm(x), one.params)
    assert (found != expected).float().mean() <= 1e-3, "ties apart"
    assert len(torch.unique(scale)) > 60


def test_weight_ranges_are_those_of_the_folded_weights(judged):
    made = judged(variant(reconstruction="none"), Normed(), Bits(4, 4))[0]
    quantizer = made.layers["one"].only_part.weight_quantizer
    stale = minmax_range(made.original.one.weight, 4, axis=0).scale
    assert float((quantizer.scale / stale - 1).abs().median()) > 0.3
    codes = quantize(made.layers["one"].weight, quantizer.params)
    assert torch.equal(codes.to(torch.uint8), quantizer.codes)


def test_the_price_is_paid_in_the_weights(judged):
    network = Normed()
    with torch.no_grad():  # level weights, so that r1 makes their columns differ
        for layer in (network.one, network.two):
            layer.weight.uniform_(-0.01, 0.01)
    gaps = []
    for fold in (True, False):
        method = variant(fold=fold, reconstruction="none")
        made = judged(method, network, Bits(4, 8))[0]
        points = UniformStride(8).draw(sampled(), 0)
        with torch.no_grad(), made.using(weights=True, acts=False):
            gaps.append(float((made.run(points) - points.call(network)).square().mean()))
    assert gaps[0] > 1.5 * gaps[1]


def test_clipping_learns_towards_the_readers():
    network = Normed().eval().requires_grad_(False)
    wide = output_gram([network.one.weight, network.two.weight])
    x = torch.randn(3, 64)
    total = sum((x @ layer.weight.T).square().sum() for layer in (network.one, network.two))
    assert torch.allclose(((x @ wide) * x).sum(), total, rtol=1e-4)


def test_learned_clips_are_never_worse_on_what_they_see(transformer):
    effort = Effort(16, 40)
    made = variant(reconstruction="none")().run(transformer.context(Bits(4, 3), "paper", effort))
    shares = [site["clipped"] for site in made.notes["folds"].values()]
    assert len(shares) == 5
    assert max(shares) <= 1.0
    assert min(shares) < 0.97
    assert all(site["modulation"] for site in made.notes["folds"].values())


def test_packs_and_loads_after_the_fold(probe):
    method = variant(reconstruction="none")
    made = method().run(probe.context(Bits(4, 4), "paper", Effort(16, 4)))
    assert made.notes["folds"], "every network has a norm that linears read"
    packed = pack(made)
    assert parity(made, packed, probe.heldout).max_rel <= 1e-5
    observe(made, packed, probe.model)  # refuses widths that are not the declared ones
    other = probe.context(Bits(4, 4), "paper", Effort(16, 4)).wrap()
    other.load_state(made.state())
    with torch.no_grad():
        assert torch.equal(other.run(probe.heldout), made.run(probe.heldout))
        with made.using(weights=False, acts=False):
            target = probe.heldout.call(probe.model)
            gap = (made.run(probe.heldout) - target).abs().max() / target.abs().max()
    assert float(gap) <= 1e-5


def test_closed_form_reconstruction_answers_quantized_inputs(judged):
    network = Normed()
    plain = judged(variant(reconstruction="none"), network, Bits(3, 4))
    columns = judged(RepQuant, network, Bits(3, 4))
    assert plain[1] >= 1.3 * columns[1]
    assert plain[0].layers["one"].bits == columns[0].layers["one"].bits
    assert max(columns[0].notes["reconstruction"].values()) <= 1.0


def test_blocks_may_be_reconstructed_instead(pixel):
    effort = Effort(16, 20)
    made = variant(reconstruction="blocks")().run(pixel.context(Bits(4, 8), "paper", effort))
    blocks = made.notes["reconstruction"]
    assert min(block["after"] / max(block["before"], 1e-30) for block in blocks) < 0.9
    assert parity(made, pack(made), pixel.heldout).max_rel <= 1e-5


def published(probe, bits):
    context = probe.context(bits, "paper", Effort(16, 2))
    context = replace(context, policy=RepQuant.published)
    return context


def test_published_softmax_is_log_sqrt2_and_its_integers_agree(transformer):
    made = RepQuant().run(published(transformer, Bits(4, 4)))
    assert made.attention
    for products in made.attention.values():
        quantizer = products.quantizers["softmax"]
        assert isinstance(quantizer, LogQuantizer)
        assert (quantizer.per_octave, quantizer.bits) == (2, 4)
        assert quantizer.scale is not None, "static, as searched"
    packed = pack(made)
    assert parity(made, packed, transformer.heldout).max_rel <= 1e-5
    with torch.no_grad():
        gaps = attention_parity(made, transformer.heldout)
    assert set(gaps) == set(made.attention)
    assert max(gaps.values()) <= 1e-5
    plain = variant(log_softmax=False)().run(published(transformer, Bits(4, 4)))
    with torch.no_grad():
        assert not torch.equal(plain.run(transformer.heldout), made.run(transformer.heldout))


def test_layers_beside_norms_have_the_plain_range(judged):
    network = Normed()
    made = judged(RepQuant, network, Bits(8, 4))[0]
    other = judged(variant(fold=False), network, Bits(8, 4))[0]
    quantizers = [m.layers["first"].only_part.static for m in (made, other)]
    assert torch.equal(*(q.scale for q in quantizers))


@pytest.mark.slow
def test_conformance():
    results = check("repquant", effort=Effort(samples=8, iterations=4))
    assert {(r.name, r.model): r.detail for r in results if not r.passed} == {}
