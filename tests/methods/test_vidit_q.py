"""ViDiT-Q: balancing and rotation keep the function, tokens have their ranges, bits are as said."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.methods.core.affine import quantize
from quantarena.methods.core.bits import FP, Bits
from quantarena.methods.core.model.options.input_rotation import InputRotation
from quantarena.methods.core.model.policy import BUDGET
from quantarena.methods.core.model.width_budget import WidthBudget
from quantarena.methods.core.packed.pack import observe, pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.quantizers.activation import ActQuantizer, DynamicActQuantizer
from quantarena.methods.core.trace.network import Role
from quantarena.methods.info import Effort
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.techniques.calibrate.channel_peaks import mean_peaks
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.scaling.channel_scaling import smooth
from quantarena.methods.testing.conformance import check
from quantarena.methods.vidit_q import (
    PIXART_ALPHA,
    VIDEO_ALPHA,
    ViditQ,
    content_layers,
    structure_loss,
)

SMALL = Effort(16, 0)


class Layers(nn.Module):
    """Three linears on tokens, the middle one in question."""

    def __init__(self, width=64):
        super().__init__()
        self.first, self.middle = nn.Linear(4, width), nn.Linear(width, 24)
        self.last = nn.Linear(24, 4)

    def gains(self, tokens):
        return torch.ones(1, 1, 1)

    def forward(self, sample, timestep=None, return_dict=True):
        tokens = sample.flatten(2).transpose(1, 2)
        gain = self.gains(tokens)
        y = self.middle(torch.tanh(self.first(tokens)) * gain) / gain.amin(-1, True)
        return (self.last(torch.tanh(y)).transpose(1, 2).reshape(sample.shape),)


class Imbalanced(Layers):
    """Input channels of the middle layer differ thirtyfold, its weights undo it."""

    def gains(self, tokens):
        return torch.logspace(0, 1.477, 64)

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.middle.weight /= self.gains(None)


class FarTokens(Layers):
    """Tokens differ fiftyfold in size, whatever the channel."""

    def gains(self, tokens):
        return torch.logspace(0, 1.7, tokens.shape[1]).reshape(1, -1, 1)


class Spiked(Layers):
    """Every token has one channel of its own that is fifty times as large as the others.

    No factor for each channel levels these, and a range by token has to hold them.
    """

    def __init__(self):
        super().__init__(256)
        with torch.no_grad():  # so that tanh takes what comes
            self.middle.weight /= 25.0

    def gains(self, tokens):
        gain = torch.ones(tokens.shape[1], 256)
        token = torch.arange(tokens.shape[1])
        gain[token, 7 * token % 256] = 50.0
        return gain


def variant(**off):
    """ViDiT-Q with some of its ideas set otherwise."""
    return lambda: ViditQ(ViditQ.Options(**off))


@pytest.mark.parametrize(
    ("network", "off", "rest"),
    [
        # with alpha 1 inputs are level; thirtyfold is more than 0.3 undoes
        (Imbalanced, {"balancing": False}, {"alpha": 0.8, "rotation": False}),
        (FarTokens, {"dynamic": False}, {"rotation": False}),
        (Spiked, {"rotation": False}, {}),
    ],
)
def test_each_idea_wins_where_its_structure_is(judged, network, off, rest):
    network = network()
    rtn, ours, without = (
        judged(method, network, Bits(8, 4))[1]
        for method in (RoundToNearest, variant(**rest), variant(**rest, **off))
    )
    assert rtn >= 5.0 * ours
    assert without >= 5.0 * ours, f"the gain is not {off}'s"


def test_the_papers_exponent_balances_too(judged):
    network = Imbalanced()
    ours, without = (
        judged(variant(balancing=on, rotation=False), network, Bits(8, 4))[1]
        for on in (True, False)
    )
    assert without >= 1.5 * ours
    assert ViditQ.Options().alpha == PIXART_ALPHA > VIDEO_ALPHA


def test_balancing_keeps_the_function_and_is_the_formula(probe):
    model = probe.context(Bits(4, 8), "paper", SMALL).wrap()
    before = {name: layer.weight.clone() for name, layer in model.layers.items()}
    peaks = mean_peaks(model, probe.heldout, momentum=0.95)
    spread = ViditQ().balance(model, probe.heldout)
    assert spread.keys() == model.layers.keys()
    with torch.no_grad(), model.using(weights=False, acts=False):
        target = probe.heldout.call(probe.model)
        gap = (model.run(probe.heldout) - target).abs().max() / target.abs().max()
    assert float(gap) <= 1e-5
    for name, layer in model.layers.items():
        factor = smooth(peaks[name], before[name], alpha=0.3).factor
        assert torch.allclose(layer.input_factor, 1 / factor, rtol=1e-4)


def test_rotation_comes_after_balancing_and_keeps_the_function(transformer):
    context = transformer.context(Bits(4, 4), "paper", SMALL)
    made, plain = (variant(rotation=on)().run(context) for on in (True, False))
    points = transformer.heldout
    with torch.no_grad(), made.using(weights=False, acts=False):
        target = points.call(transformer.model)
        assert (made.run(points) - target).abs().max() <= 1e-5 * target.abs().max()
    for name, layer in made.layers.items():
        rotation, before = layer.option(InputRotation), plain.layers[name].input_factor
        assert (rotation is None) == layer.is_conv
        if rotation is not None:
            wanted = before * layer.in_channels**-0.5
            assert torch.allclose(rotation.factor.abs(), wanted, rtol=1e-5)
    assert parity(made, pack(made), points).max_rel <= 1e-5


def test_a_tokens_codes_do_not_depend_on_the_others(transformer):
    made = ViditQ().run(transformer.context(Bits(4, 4), "paper", SMALL))
    linears = [layer for layer in made.layers.values() if not layer.is_conv]
    assert linears
    for layer in linears:
        quantizer = layer.only_part.act_quantizer
        assert isinstance(quantizer, DynamicActQuantizer)
        x = torch.randn(2, 5, layer.in_channels)
        alone = quantizer(x[:1, 2:3])
        x[0, 0], x[1] = 1e3, -50.0
        assert torch.equal(quantizer(x)[:1, 2:3], alone)


def test_a_sample_does_not_depend_on_its_batch_mates(probe):
    made = ViditQ().run(probe.context(Bits(4, 4), "paper", SMALL))
    packed = pack(made)
    with torch.no_grad():
        for network in (made.module, packed.module):
            whole = probe.heldout.call(network)
            one = probe.heldout.rows(slice(3, 4)).call(network)
            assert torch.allclose(whole[3:4], one, atol=1e-5)


def test_images_have_one_range_unless_asked(pixel):
    kinds = {}
    for images in (False, True):
        method = variant(dynamic_images=images)
        made = method().run(pixel.context(Bits(4, 4), "paper", SMALL))
        convolutions = [layer for layer in made.layers.values() if layer.is_conv]
        kinds[images] = {type(layer.only_part.act_quantizer) for layer in convolutions}
        assert parity(made, pack(made), pixel.heldout).max_rel <= 1e-5
    assert kinds == {False: {ActQuantizer}, True: {DynamicActQuantizer}}


@pytest.mark.parametrize("bits", [Bits(4, 8), Bits(2, 4)])
def test_declared_bits_are_those_of_the_codes(probe, bits):
    made = ViditQ().run(probe.context(bits, "paper", SMALL))
    for layer in made.layers.values():
        assert len(torch.unique(layer.only_part.weight_quantizer.codes)) <= (2**layer.bits.weight)
        assert int(layer.only_part.weight_quantizer.codes.max()) < 2**layer.bits.weight
    packed = pack(made)
    assert parity(made, packed, probe.heldout).max_rel <= 1e-5
    seen = observe(made, packed, probe.model)  # refuses widths that are not the declared ones
    eight = [i for n, i in probe.graph.layers.items() if made.layers[n].bits.weight == 8]
    share = sum(i.weights for i in eight) / sum(i.weights for i in probe.graph.layers.values())
    assert seen.code_bits == pytest.approx(bits.weight + (8 - bits.weight) * share, abs=1e-6)


def test_weights_are_min_max_to_nearest(transformer):
    made = ViditQ().run(transformer.context(Bits(4, 8), "paper", SMALL))
    for layer in made.layers.values():
        quantizer = layer.only_part.weight_quantizer
        wanted = minmax_range(layer.weight, quantizer.bits, axis=0)
        assert torch.equal(quantizer.scale, wanted.scale)
        codes = quantize(layer.weight, wanted).to(torch.uint8)
        assert torch.equal(codes, quantizer.codes)


def test_published_leaves_embedders_and_the_final_layer(transformer):
    context = transformer.context(Bits(4, 8), "paper", SMALL)
    context = replace(context, policy=ViditQ.published)
    made = ViditQ().run(context)
    roles = {transformer.graph.layers[name].role for name in made.layers}
    assert roles == {Role.QKV, Role.ATTN_OUT, Role.FF}
    assert not made.attention
    widths = ViditQ.published.assign(transformer.graph, Bits(4, 8))
    assert widths["proj_out_2"] == FP


def test_bits_go_to_layers_that_matter_at_the_same_mean(judged, uneven):
    (made, ours), (_, equal) = (
        judged(variant(mixed=mixed, decoupled=False), uneven, Bits(3, 8), BUDGET)
        for mixed in (True, False)
    )
    assert equal >= 3 * ours
    widths = [made.layers[f"middle.{i}"].bits.weight for i in range(6)]
    assert min(widths[1], widths[4]) > 3 > max(widths[0], widths[2])
    assert set(made.notes["allocation"]) == {"quality"}


class Drawn(nn.Module):
    """Feed-forward layers draw a faint pattern; others move the high level of whole channels."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 32), nn.Linear(32, 4)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.level, self.shift = nn.Linear(32, 64), nn.Linear(64, 4)

    def forward(self, sample, timestep=None, return_dict=True):
        x = self.first(sample.flatten(2).transpose(1, 2))
        x = torch.tanh(x) + x  # a sum in between: no feed-forward
        pattern = self.down(torch.nn.functional.silu(self.up(x)))
        level = self.level(x.mean(1, keepdim=True))
        level = self.shift(torch.tanh(level) + level)
        drawn = self.last(pattern) + 3 * level + 30
        return (drawn.transpose(1, 2).reshape(sample.shape),)


def test_a_metric_of_its_own_keeps_bits_for_what_squared_error_overlooks(judged):
    torch.manual_seed(1)
    network = Drawn()
    losses = {}
    for decoupled in (True, False):
        made, _ = judged(variant(decoupled=decoupled), network, Bits(3, 8), BUDGET)
        sample = torch.randn(32, 4, 6, 6, generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            losses[decoupled] = structure_loss(made.module(sample)[0], network(sample)[0])
        if decoupled:
            assert content_layers(made.graph) == {"up", "down"}
            assert set(made.notes["allocation"]) == {"content", "quality"}
        observe(made, pack(made), network, WidthBudget.of(BUDGET, made.graph, Bits(3, 8)))
    assert losses[False] >= 3 * losses[True]


def test_structure_is_that_of_an_image():
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert structure_loss(x, x) == pytest.approx(0, abs=1e-9)
    noisy = [structure_loss(x + s * torch.randn_like(x), x) for s in (0.1, 0.5, 2.0)]
    assert noisy == sorted(noisy)
    assert noisy[0] > 1e-3
    assert structure_loss(2 * x, x) > noisy[0]


def test_two_runs_are_one_result(conditional):
    one, other = (
        ViditQ().run(conditional.context(Bits(4, 4), "paper", SMALL)).state() for _ in range(2)
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_conformance():
    results = check("vidit_q", effort=Effort(samples=8, iterations=2))
    assert {(r.name, r.model): r.detail for r in results if not r.passed} == {}
