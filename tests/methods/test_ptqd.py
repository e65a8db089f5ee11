"""PTQD: planted noise is measured, undone in the packed network, and each part is needed."""

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import Unsupported, UserError
from quantarena.methods.core.model.options.call_affine import CallAffine
from quantarena.methods.core.packed.checkpoint import load_packed, save_packed
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.trace.network import Role
from quantarena.methods.info import Effort
from quantarena.methods.ptqd import Ptqd
from quantarena.methods.q_diffusion import QDiffusion
from quantarena.methods.testing import networks
from quantarena.methods.testing.conformance import check

W4A8 = Bits(4, 8)
DEAD = 6


class Inflated(nn.Module):
    """Rounding raises every weight of ``middle`` from 0.6 steps to a whole one.

    Its peaks, which set the step, meet channels that are always 0. So the quantized prediction is
    ``(p - b) / 0.6 + b`` where ``b`` is the bias of the last layer: noise with slope 2/3 and a
    constant of -2/3 b.
    """

    def __init__(self, bias=1.0):
        super().__init__()
        self.first, self.middle = nn.Linear(4, 32), nn.Linear(32, 24, bias=False)
        self.last = nn.Linear(24, 4)
        with torch.no_grad():
            self.first.weight[:DEAD] = self.first.bias[:DEAD] = 0
            step = 7 / 15
            self.middle.weight.copy_((torch.rand(24, 32) > 0.5) * 0.6 * step)
            self.middle.weight[:, :DEAD] = 7
            self.last.bias.copy_(bias * torch.tensor([1.0, -1.0, 0.5, 0.0]))

    def forward(self, sample, timestep=None, return_dict=True):
        x = self.middle(self.first(sample.flatten(2).mT))
        return (self.last(x).mT.reshape(sample.shape),)


def ptqd(**options):
    return lambda: Ptqd(Ptqd.Options(**options))


@pytest.fixture
def inflated():
    torch.manual_seed(0)
    return Inflated()


def test_planted_noise_is_undone_and_each_part_is_needed(judged, inflated):
    base, ours, no_slope, no_bias = (
        judged(ptqd(**off), inflated, W4A8)[1]
        for off in (
            {"correlated": False, "bias": False},
            {},
            {"correlated": False},
            {"bias": False},
        )
    )
    assert base >= 100 * ours
    assert no_slope >= 20 * ours, "the gain is not the slope's"
    assert no_bias >= 20 * ours, "the gain is not the bias's"


def test_planted_noise_is_found(judged, inflated):
    made, _ = judged(ptqd(), inflated, W4A8)
    noise = made.notes["prediction_noise"]
    assert noise["slope"] == pytest.approx([2 / 3] * 4, rel=0.01)
    assert noise["bias"] == pytest.approx([2 / 3] * 4, rel=0.02)
    assert max(noise["left"]) <= 0.01 * min(noise["error"])


def test_a_negative_slope_stays_unless_asked_for(judged, inflated):
    with torch.no_grad():  # 1.4 steps, rounded down
        small = inflated.middle.weight[:, DEAD:]
        small.copy_((small > 0) * 1.4 * 7 / 15)
    made, kept = judged(ptqd(), inflated, W4A8)
    assert made.notes["prediction_noise"]["slope"] == [0.0] * 4
    made, undone = judged(ptqd(negative=True), inflated, W4A8)
    assert made.notes["prediction_noise"]["slope"] == pytest.approx([1 / 1.4 - 1] * 4, rel=0.01)
    assert kept >= 10 * undone


def test_the_correction_is_packed_and_comes_back(probe, tmp_path):
    made = ptqd(base="rtn")().run(probe.context(W4A8, "paper", Effort(16, 2)))
    name = next(n for n, x in probe.graph.layers.items() if x.role is Role.OUTPUT)
    tables = made.layers[name].option(CallAffine)
    assert tables.gain.shape == (networks.CALLS, len(made.layers[name].weight))
    assert bool((tables.gain < 1).any() or (tables.shift != 0).any())
    packed = pack(made)
    assert parity(made, packed, probe.heldout).max_rel <= 1e-5
    save_packed(packed, tmp_path, meta={})
    build = {
        "pixel-unet": networks.pixel_unet,
        "conditional-unet": networks.conditional_unet,
        "transformer": networks.transformer,
    }[probe.name]
    loaded = load_packed(tmp_path, build())
    with torch.no_grad():
        for model in (packed, loaded):
            with model.clock.at(probe.heldout.step):
                output = probe.heldout.call(model.module)
            errors = (output - made.run(probe.heldout)).abs().flatten(1).amax(1)
            assert errors.median() <= 1e-6 * output.abs().max()
            # sums in another order may put a code of one image on the other side of a tie
            assert errors.max() <= 0.05 * output.abs().max()
    with pytest.raises(UserError, match="4 calls"), loaded.clock.at(networks.CALLS):
        probe.heldout.call(loaded.module)  # a call beyond the tables


def test_with_nothing_to_undo_it_is_q_diffusion(pixel):
    effort = Effort(16, 4, range_samples=16)  # half of the recording: which half counts
    off = Ptqd(Ptqd.Options(correlated=False, bias=False))
    ours, theirs = (m.run(pixel.context(W4A8, "paper", effort)) for m in (off, QDiffusion()))
    assert ours.layers.keys() == theirs.layers.keys()
    for name, layer in ours.layers.items():
        assert layer.option(CallAffine) is None
        for part, twin in zip(layer.parts, theirs.layers[name].parts, strict=True):
            assert torch.equal(part.weight_quantizer.codes, twin.weight_quantizer.codes)
            assert torch.equal(part.static.scale, twin.static.scale)
            assert torch.equal(part.static.zero_point, twin.static.zero_point)


def test_ranges_see_all_images_and_noise_whole_walks(pixel):
    """Ranges of few images are exceeded by others; noise is measured where a walk has been."""
    context = pixel.context(W4A8, "paper", Effort(16, 0, range_samples=16))
    Ptqd(Ptqd.Options(base="rtn")).run(context)
    draws = context.draws.as_dict()
    assert draws["ranges"]["images"] == networks.ROWS
    assert draws["walks"]["images"] == networks.ROWS // 2


class Protected(Ptqd):
    """Leaves the layer that makes the prediction out of the model."""

    def quantize_base(self, ctx, recorded):
        model = super().quantize_base(ctx, recorded)
        del model.layers["conv_out"]
        return model


def test_a_prediction_in_floating_point_has_no_place_for_it(pixel):
    with pytest.raises(Unsupported, match="conv_out makes the prediction"):
        Protected(Ptqd.Options(base="rtn")).run(pixel.context(W4A8, "paper", Effort(16, 0)))


@pytest.mark.slow
def test_conformance():
    results = check("ptqd", effort=Effort(samples=8, iterations=4))
    assert {(r.name, r.model): r.detail for r in results if not r.passed} == {}
