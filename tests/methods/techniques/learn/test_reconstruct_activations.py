"""The reconstruction engine where activations learn: scales, zero points, tables by call."""

import pytest
import torch

from quantarena.methods.core.bits import Bits
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.calibrate.plan import FLOAT_WEIGHTS
from quantarena.methods.techniques.learn import optimise
from quantarena.methods.techniques.learn.param_groups import Decay, Group
from quantarena.methods.techniques.learn.reconstruct import reconstruct
from quantarena.methods.techniques.learn.schedule import Schedule
from quantarena.methods.techniques.ranges.minmax import minmax_range


def calibrated(pixel, ground):
    model, blocks, points = ground
    model.freeze()
    calibrate_activations(model, points, minmax_range)
    block = blocks["mid_block"]
    acts = [p.act_quantizer for n in block.layers for p in model.layers[n].parts]
    return model, block, points, acts


def test_activation_scales_learn(pixel, ground):
    model, block, points, acts = calibrated(pixel, ground)
    for quantizer in acts:  # ranges far too wide, as an outlier would make them
        quantizer.scale.data *= 8
    before = [(float(q.scale), float(q.zero_point)) for q in acts]
    group = Group(3e-2, Decay.COSINE, relative=True)
    schedule = Schedule(80, {"act_scale": group}, batch=8, norm=2.4)
    (report,) = reconstruct(model, [block], points, schedule, acts=True, seed=0)
    assert report.after < 0.85 * report.before
    for quantizer, (scale, zero) in zip(acts, before, strict=True):
        assert 0 < float(quantizer.scale) != scale
        assert float(quantizer.zero_point) == zero
        assert not quantizer.scale.requires_grad


def test_zero_points_end_as_integers_with_their_drift(pixel, ground):
    model, block, points, acts = calibrated(pixel, ground)
    schedule = Schedule(8, {"act_zero": Group(0.05)}, batch=8)
    (report,) = reconstruct(model, [block], points, schedule, acts=True, seed=0)
    assert 0 < report.drift <= 0.5
    assert all(float(q.zero_point) == round(float(q.zero_point)) for q in acts)


def test_banks_learn_at_the_steps_of_the_points_only(pixel, ground):
    model, block, points, acts = calibrated(pixel, ground)
    early = points.rows(points.step < 2)
    for quantizer in acts:
        scale = quantizer.scale.detach()
        quantizer.set_bank(scale.expand(4).clone(), quantizer.zero_point.detach().expand(4).clone())
    before = [q.scale.detach().clone() for q in acts]
    schedule = Schedule(6, {"act_scale": Group(1e-2, relative=True)}, batch=4)
    reconstruct(model, [block], early, schedule, acts=True, seed=0)
    for quantizer, old in zip(acts, before, strict=True):
        assert (quantizer.scale[:2] != old[:2]).all()
        assert torch.equal(quantizer.scale[2:], old[2:])


def test_dropped_activations_skip_their_quantizer(pixel, ground):
    *_, acts = calibrated(pixel, ground)
    quantizer, x = acts[0], torch.randn(4000)
    generator = torch.Generator().manual_seed(0)
    with optimise._dropping([quantizer], 0.25, generator):
        output = quantizer(x)
    plain = quantizer(x)
    assert ((output == x) | (output == plain)).all()
    assert float((output == x)[plain != x].float().mean()) == pytest.approx(0.25, abs=0.03)
    assert not quantizer._forward_hooks


def test_joint_weights_and_activations(make, cut, pixel, points):
    """EDA-DM and DilateQuant learn both at once."""
    model = make(pixel, Bits(4, 4))
    calibrate_activations(model, points, minmax_range, FLOAT_WEIGHTS)
    block = next(b for b in cut(model, points) if b.name == "mid_block")
    groups = {"rounding": Group(0.1), "act_scale": Group(1e-2, Decay.COSINE, relative=True)}
    schedule = Schedule(60, groups, batch=8, layers=0.8, mix=0.5, act_drop=0.5)
    (report,) = reconstruct(model, [block], points, schedule, acts=True, seed=0)
    assert report.after < 0.8 * report.before
