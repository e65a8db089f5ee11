"""DGQ: where groups win and along which axis, what they cost, attention without its start token."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import AttentionBits, Bits
from quantarena.methods.core.errors import Unsupported, UserError
from quantarena.methods.core.model.attention_mode import Fake
from quantarena.methods.core.model.options.patches import Patches
from quantarena.methods.core.packed.native_attention import Native
from quantarena.methods.core.packed.nodes.patches import PatchLayer
from quantarena.methods.core.packed.pack import observe, pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.record.announce import announcing
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.dgq import Dgq
from quantarena.methods.info import Effort
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.testing.conformance import check

CALLS, LOUD = 4, 40.0


class Tokens(nn.Module):
    """36 tokens of 48 channels into the middle layer, ``gain`` undone behind it."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 48), nn.Linear(48, 16), nn.Linear(16, 4)
        self.gain = gain

    def forward(self, sample, timestep=None, return_dict=True):
        x = torch.tanh(self.first(sample.flatten(2).mT)) * self.gain
        return (self.last(torch.tanh(self.back(x))).mT.reshape(sample.shape),)

    def back(self, x):
        return self.middle(x) / self.gain


class LoudChannels(Tokens):
    """Five channels are much larger, their weights as much smaller."""

    def __init__(self):
        gain = torch.ones(48)
        gain[[3, 17, 18, 30, 41]] = LOUD
        super().__init__(gain)
        with torch.no_grad():
            self.middle.weight /= gain

    def back(self, x):
        return self.middle(x)


class LoudTokens(Tokens):
    """Three tokens are much larger."""

    def __init__(self):
        gain = torch.ones(36, 1)
        gain[[0, 20, 33]] = LOUD
        super().__init__(gain)


class Stepped(Tokens):
    """All activations are larger at later calls."""

    def forward(self, sample, timestep=None, return_dict=True):
        self.gain = LOUD ** (timestep / (CALLS - 1)).reshape(-1, 1, 1)
        return super().forward(sample)


class LoudCorner(nn.Module):
    """An image whose corner is much larger, into a 3x3 convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, sample, timestep=None, return_dict=True):
        gain = torch.ones(6, 6)
        gain[:2, :2] = LOUD
        near = nn.functional.max_pool2d(gain[None], 3, 1, 1)  # of all that an output reads
        x = self.middle(torch.tanh(self.first(sample)) * gain) / near
        return (self.last(torch.tanh(x)),)


def variant(**off):
    """DGQ with some of its ideas set otherwise."""
    return lambda: Dgq(Dgq.Options(**off))


@pytest.mark.parametrize(
    ("network", "axis", "off"),
    [
        (LoudChannels, "channels", {"groups": 1}),
        (LoudTokens, "positions", {"groups": 1}),
        (LoudCorner, "positions", {"groups": 1}),
        (LoudCorner, "positions", {"patches": False}),
        (Stepped, "", {"per_call": False, "groups": 1}),
    ],
)
def test_groups_beat_rtn_along_the_axis_that_differs(judged, network, axis, off):
    network = network()
    # a plain per-call range is what Stepped asks for; groups are off on both sides there
    ours = {"least": 1} if axis else {"least": 1, "groups": 1}
    made, error = judged(variant(**ours), network, Bits(8, 4))
    assert not axis or made.notes["groups"]["middle"]["axis"] == axis
    assert judged(RoundToNearest, network, Bits(8, 4))[1] >= 4 * error
    assert judged(variant(**{**ours, **off}), network, Bits(8, 4))[1] >= 4 * error, f"not {off}'s"
    recorded = Trajectory(torch.randn(CALLS, 1, 4, 6, 6), torch.arange(CALLS).float(), {})
    points = recorded.pick(torch.arange(CALLS), torch.zeros(CALLS, dtype=torch.long))
    assert parity(made, pack(made), points).max_rel <= 1e-5


def test_outlier_channels_are_in_groups_of_their_own(judged):
    made = judged(Dgq, LoudChannels(), Bits(8, 4))[0]
    ids = made.layers["middle"].parts[0].static.ids
    loud = {3, 17, 18, 30, 41}
    groups = {int(ids[k]) for k in loud}
    assert not groups & {int(ids[k]) for k in set(range(48)) - loud}
    assert int(ids.max()) < Dgq.Options().groups


def test_error_falls_with_groups(judged):
    network = LoudChannels()
    with torch.no_grad():
        network.gain *= torch.logspace(0, 1, 48)
        network.middle.weight /= torch.logspace(0, 1, 48)
    errors = [judged(variant(groups=g), network, Bits(8, 4))[1] for g in (1, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)


def test_roundings_learn_and_beat_the_nearest(pixel):
    def judged(method, iterations):
        made = method().run(pixel.context(Bits(3, 8), "paper", Effort(24, iterations)))
        with torch.no_grad():
            target = pixel.heldout.call(pixel.model)
            return float((made.run(pixel.heldout) - target).square().mean())

    learned = judged(Dgq, 80)
    assert judged(variant(adaround=False), 80) >= 1.3 * learned
    assert judged(RoundToNearest, 0) >= 1.3 * learned


def plain(probe, policy=None, **off):
    """A model at w4a4 without learned roundings."""
    context = probe.context(Bits(4, 4), "paper", Effort(16, 0))
    if policy is not None:
        context = replace(context, policy=policy)
    return variant(**off)().run(context)


def test_published_packs_with_the_same_numbers(probe):
    made = plain(probe, policy=Dgq.published)
    packed = pack(made)
    assert parity(made, packed, probe.heldout.rows(slice(0, 6))).max_rel <= 1e-5
    seen = observe(made, packed, probe.model)
    assert seen.attention == len(probe.graph.attention) > 0
    roles = {info.role for name, info in probe.graph.layers.items() if name not in made.layers}
    assert roles == {"input", "output"}
    with torch.no_grad(), packed.clock.at(probe.heldout.step):
        y = probe.heldout.call(packed.module)
        target = made.run(probe.heldout)
    # a last bit of one softmax can move a code, so whole networks agree less than products
    assert float((y - target).square().mean() / target.square().mean()) <= 1e-4


def test_vectors_and_grouped_convolutions_have_one_range(probe):
    made = plain(probe)
    for name, layer in made.layers.items():
        role = probe.graph.layers[name].role
        if role in ("time_embed", "emb_proj", "adaln"):
            assert layer.parts[0].static.axis is None
            assert made.notes["groups"][name] == {"axis": "tensor"}
    assert any(layer.parts[0].static.axis is not None for layer in made.layers.values())


def test_positions_have_patches_where_they_are_wanted(pixel):
    made = plain(pixel)
    packed = pack(made)
    notes = made.notes["groups"]
    for name, layer in made.layers.items():
        patched = isinstance(packed.layers[name], PatchLayer)
        assert (
            patched
            == (layer.option(Patches) is not None)
            == (layer.is_conv and notes[name]["axis"] == "positions")
        )
    assert any(layer.option(Patches) for layer in made.layers.values())
    for layer in plain(pixel, patches=False).layers.values():
        assert layer.option(Patches) is None


def test_freezing_channels_is_for_packing(pixel):
    made = plain(pixel, frozen=False)
    assert any(
        layer.parts[0].static.axis in (1, -1) and layer.parts[0].static.ids.dim() == 2
        for layer in made.layers.values()
    )
    with pytest.raises(Unsupported, match="differ by sampler call have no packed form"):
        pack(made)


@pytest.mark.parametrize("side", [6, 16])
def test_another_image_size_is_one_clear_error(pixel, side):
    made = plain(pixel)
    packed = pack(made)
    x = torch.randn(2, *pixel.heldout.sample.shape[1:-2], side, side)
    for network, clock in ((made.module, made.clock), (packed.module, packed.clock)):
        with clock.at(1), torch.no_grad(), pytest.raises(ValueError, match="another image size"):
            network(x, 3)


def test_other_steps_than_calibrated_are_one_clear_error(diffusers, pixel):
    packed, scheduler = pack(plain(pixel)), diffusers.DDIMScheduler()
    with announcing(scheduler, packed.clock), pytest.raises(UserError, match="4 calls"):
        scheduler.set_timesteps(7)
    with packed.clock.at(4), pytest.raises(UserError, match="calibrated for 4 calls"):
        packed.module(pixel.heldout.sample[:1], 3)


def cross(made):
    """The first cross-attention of a model, with operands."""
    name = next(n for n, info in made.graph.attention.items() if info.kind == "cross")
    quant = made.attention[name]
    heads, keys = quant.info.heads, quant.info.keys
    query, value = torch.randn(3, heads, 36, 8), torch.randn(3, heads, keys, 8)
    return quant, query, torch.randn(3, heads, keys, 8), value


@pytest.fixture(scope="module")
def attentive(conditional):
    return plain(conditional, policy=Dgq.published, groups=1)


def test_start_token_column_stays_in_floating_point(attentive):
    quant, query, key, value = cross(attentive)
    assert quant.excluded == 1
    probs = torch.rand(3, quant.info.heads, 36, quant.info.keys)
    with attentive.clock.at(0), torch.no_grad():
        coded = quant.static("query")(query)
        scores = quant.scores(query, key)
        assert torch.equal(scores[..., :1], coded @ key[..., :1, :].mT)
        # the share of token 0 enters as it is, and moves nothing else
        louder = probs.clone()
        louder[..., 0] += 5.0
        moved = quant.mix(louder, value) - quant.mix(probs, value)
        first = quant.static("value")(value)[..., :1, :]
        assert torch.allclose(moved, 5.0 * first.expand_as(moved), atol=1e-4)
        kept = quant.quantizers["softmax"].params(quant.inside("softmax", louder))
        assert torch.equal(
            kept.scale, quant.quantizers["softmax"].params(quant.inside("softmax", probs)).scale
        )
    selfs = [q for q in attentive.attention.values() if q.info.kind == "self"]
    assert selfs
    assert all(q.excluded == 0 for q in selfs)


def test_log_codes_are_exact_on_their_grid_and_bounded_between(attentive):
    quant = cross(attentive)[0]
    softmax = quant.quantizers["softmax"]
    top = 2**4 - 1
    grid = 0.7 * 2.0 ** -torch.arange(top + 1)
    assert torch.allclose(softmax(grid.reshape(1, 1, 1, -1)).flatten(), grid, rtol=1e-6)
    x = torch.rand(2, 2, 20, 30).clamp(min=2.0 ** (0.5 - top))
    y = softmax(x)
    ratio = y / x
    assert float(ratio.max()) <= math.sqrt(2) + 1e-5
    assert float(ratio.min()) >= 1 / math.sqrt(2) - 1e-5
    zero = softmax(torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)).flatten()
    assert float(zero[0]) == pytest.approx(2.0**-top)


@pytest.mark.parametrize("native", [False, True])
def test_a_prompt_alone_is_as_in_its_batch(attentive, native):
    quant, query, key, value = cross(attentive)
    query[1:] *= 6  # its mates are sharper: a scale over the batch would be theirs
    quant.mode = Native() if native else Fake()
    with attentive.clock.at(0), torch.no_grad():
        alone = quant.attend(query[:1], key[:1], value[:1])
        together = quant.attend(query, key, value)
    quant.mode = Fake()
    assert torch.allclose(alone[0], together[0], atol=1e-6)


@torch.no_grad()
def test_packed_network_does_not_mix_images(conditional):
    made = plain(conditional, policy=Dgq.published)
    packed = pack(made)
    points = conditional.heldout.rows(torch.tensor([0, 1, 2]))
    with packed.clock.at(points.step):
        together = points.call(packed.module)
    with packed.clock.at(points.rows(slice(0, 1)).step):
        alone = points.rows(slice(0, 1)).call(packed.module)
    gap = (together[0] - alone[0]).square().mean() / alone.square().mean()
    assert float(gap) <= 1e-4, "the scale of a batch mate was used"


def test_softmax_options_are_what_is_observed(conditional):
    made = plain(conditional, policy=Dgq.published, softmax16=True)
    for quant in made.attention.values():
        assert quant.observed() == AttentionBits(4, 4, 4, 16)
    uniform = plain(conditional, policy=Dgq.published, log2=False)
    for quant in uniform.attention.values():
        assert quant.static("softmax").zero_point.abs().max() == 0
    assert all(
        q.excluded == 0
        for q in plain(conditional, policy=Dgq.published, start_token=False).attention.values()
    )
    assert parity(made, pack(made), conditional.heldout.rows(slice(0, 4))).max_rel <= 1e-5
    assert not plain(conditional, softmax16=True).attention, "uniform leaves attention alone"


def test_few_points_borrow_from_neighbouring_calls():
    method = Dgq()
    assert [method.reach(n) for n in (256, 128, 64, 32, 6, 1)] == [0, 1, 2, 4, 21, 128]
    for points in (1, 3, 6, 10, 31):
        assert points * (2 * method.reach(points) + 1) >= method.options.least


def test_release_rounds_otherwise_and_groups_alike(pixel):
    effort = Effort(16, 6)
    both = {n: Dgq().run(pixel.context(Bits(4, 4), n, effort)) for n in ("paper", "release")}
    codes = [m.layers["conv_in"].parts[0].weight_quantizer.codes for m in both.values()]
    assert not torch.equal(*codes)
    for made in both.values():
        assert len(made.notes["reconstruction"]) > 0
        assert set(made.notes["groups"]) == set(made.layers)


def test_more_calls_than_points_are_refused(pixel):
    with pytest.raises(Unsupported, match="4 calls, the preset allows 3"):
        Dgq().run(pixel.context(Bits(4, 4), "paper", Effort(3, 0)))


@pytest.mark.slow
def test_conformance():
    results = check("dgq", effort=Effort(samples=8, iterations=4))
    assert {(r.name, r.model): r.detail for r in results if not r.passed} == {}
