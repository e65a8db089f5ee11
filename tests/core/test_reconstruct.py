import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.calibrate import calibrate_activations
from quantarena.methods.core.model import wrap
from quantarena.methods.core.partition import partition
from quantarena.methods.core.policy import UNIFORM
from quantarena.methods.core.ranges import minmax_range
from quantarena.methods.core.reconstruct import (
    Schedule,
    Tuning,
    block_targets,
    reconstruct,
    reconstruction_loss,
    tune_act_scales,
    tune_rounding,
)
from quantarena.methods.core.steps import UniformStride

SPLIT = "up_blocks.1.resnets.0"
QUICK = Schedule(60, batch=8, lr=0.1)


@pytest.fixture
def ground(pixel):
    """A split w4 model with min-max ranges, its blocks and calibration points."""
    model = wrap(pixel.model, pixel.graph, UNIFORM.assign(pixel.graph, Bits(4, 8)), splits=True)
    model.set_weight_ranges(minmax_range)
    points = UniformStride(16).draw(pixel.trajectory, 0)
    probe = points.rows(slice(0, 2))
    with model.using(weights=False, acts=False):
        blocks = partition(model.module, model.layers, lambda: probe.call(model.module))
    return model, {block.name: block for block in blocks}, points


def quantizers(model, block):
    return [
        (part.weight_quantizer, model.layers[name].part_weight(part))
        for name in block.layers
        for part in model.layers[name].part_list()
    ]


def test_targets_are_full_precision_outputs(pixel, ground):
    model, blocks, points = ground
    seen = {}
    for name in blocks:
        pixel.model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.setdefault(name, output)
        )
    with torch.no_grad():
        points.call(pixel.model)
    for name in blocks:
        pixel.model.get_submodule(name)._forward_hooks.clear()
    targets = block_targets(model, list(blocks.values()), points)
    assert targets.keys() == seen.keys()
    for name, target in targets.items():
        assert torch.allclose(target, seen[name], rtol=1e-4, atol=1e-4), name


def test_inputs_come_from_the_quantized_prefix(ground):
    model, blocks, points = ground
    names = ["down_blocks.0.resnets.0", "mid_block", SPLIT]
    seen = {name: [] for name in names}
    for name in names:
        model.module.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen[name].append(args[0].detach().clone())
        )
    first = [*blocks.values()][: [*blocks].index(SPLIT) + 1]
    reconstruct(model, first, points, tune_rounding, Schedule(4, 8), acts=False, seed=0)
    arrived = {name: (calls[0], calls[1]) for name, calls in seen.items()}  # targets', then ours
    with torch.no_grad(), model.using(weights=True, acts=False):
        points.call(model.module)
    for name in names:
        full, ours = arrived[name]
        assert torch.equal(ours, seen[name][-1]), f"{name}: not the optimised prefix"
        assert (ours - full).abs().max() > 1e-3, f"{name}: input of the original network"


def test_regulariser_reaches_zero_in_both_halves(ground):
    model, blocks, points = ground
    soft = []

    def spying(layers, schedule):
        tuning = tune_rounding(layers, schedule)

        def finish():
            soft.extend(q.soft.rounding().detach() for q, _ in quantizers(model, blocks[SPLIT]))
            tuning.finish()

        return Tuning(tuning.groups, tuning.penalise, finish)

    schedule = Schedule(200, batch=8, lr=0.1)
    reconstruct(model, [blocks[SPLIT]], points, spying, schedule, acts=False, seed=0)
    assert len(soft) == 1 + len(blocks[SPLIT].layers), "the split layer has two halves"
    for rounding in soft:
        assert (1 - (2 * rounding - 1).abs().pow(2)).mean() < 0.01


def test_no_regulariser_leaves_rounding_soft(ground):
    model, blocks, points = ground
    soft = []

    def spying(layers, schedule):
        tuning = tune_rounding(layers, schedule)

        def finish():
            found = [q.soft.rounding().detach() for q, _ in quantizers(model, blocks[SPLIT])]
            soft.extend(rounding.reshape(-1) for rounding in found)
            tuning.finish()

        return Tuning(tuning.groups, tuning.penalise, finish)

    schedule = Schedule(60, batch=8, lr=1e-2, regulariser=0.0)
    reconstruct(model, [blocks[SPLIT]], points, spying, schedule, acts=False, seed=0)
    undecided = torch.cat(soft)
    assert ((undecided > 0.05) & (undecided < 0.95)).float().mean() > 0.3


def test_hard_codes_are_neighbours_of_the_weight(ground):
    model, blocks, points = ground
    reconstruct(model, [blocks[SPLIT]], points, tune_rounding, QUICK, acts=False, seed=0)
    moved = 0
    for quantizer, weight in quantizers(model, blocks[SPLIT]):
        assert quantizer.codes.dtype == torch.uint8
        assert quantizer.codes.max() <= 2**quantizer.bits - 1
        assert quantizer.soft is None
        position = weight / quantizer.scale + quantizer.zero_point
        inside = (position >= 0) & (position <= 2**quantizer.bits - 1)
        assert ((weight - quantizer(weight)).abs() <= 1.0001 * quantizer.scale)[inside].all()
        moved += int((quantizer.codes != position.round().clamp(0, 15))[inside].sum())
    assert moved > 0, "nothing was rounded against the nearest: no learning"


@pytest.mark.parametrize("name", ["down_blocks.0.resnets.0", "mid_block", SPLIT])
def test_reconstruction_lowers_the_loss(ground, name):
    model, blocks, points = ground
    (report,) = reconstruct(model, [blocks[name]], points, tune_rounding, QUICK, acts=False, seed=0)
    assert report.name == name
    assert report.after < 0.8 * report.before
    with torch.no_grad():
        target = block_targets(model, [blocks[name]], points)[name]
        got = []
        handle = model.module.get_submodule(name).register_forward_hook(
            lambda module, args, output: got.append(output)
        )
        with model.using(weights=True, acts=False):
            points.call(model.module)
        handle.remove()
    if name == "down_blocks.0.resnets.0":
        return  # layers before it round differently now that they are not frozen: input differs
    assert float(reconstruction_loss(got[0], target, 2.0)) == pytest.approx(report.after, rel=1e-3)


def test_other_blocks_are_untouched(ground):
    model, blocks, points = ground
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    reconstruct(model, [blocks[SPLIT]], points, tune_rounding, QUICK, acts=False, seed=0)
    after = model.module.state_dict()
    changed = {n for n in after if n not in before or not torch.equal(after[n], before[n])}
    assert changed
    assert all(name.startswith(SPLIT) and name.endswith("codes") for name in changed)
    hooks = [m for m in model.module.modules() if m._forward_pre_hooks or m._forward_hooks]
    assert not hooks


def test_zero_iterations_round_to_nearest(ground):
    model, blocks, points = ground
    nearest = {
        id(q): (w / q.scale + q.zero_point).round().clamp(0, 2**q.bits - 1)
        for q, w in quantizers(model, blocks[SPLIT])
    }
    none = Schedule(0)
    (report,) = reconstruct(model, [blocks[SPLIT]], points, tune_rounding, none, acts=False, seed=0)
    assert report.before == pytest.approx(report.after, rel=1e-5)
    for quantizer, _ in quantizers(model, blocks[SPLIT]):
        assert (quantizer.codes.float() == nearest[id(quantizer)]).float().mean() > 0.999


def test_same_seed_same_codes(pixel, ground):
    found = []
    for seed in (5, 5, 6):
        model = wrap(pixel.model, pixel.graph, UNIFORM.assign(pixel.graph, Bits(4, 8)))
        model.set_weight_ranges(minmax_range)
        block = ground[1]["mid_block"]
        reconstruct(model, [block], ground[2], tune_rounding, QUICK, acts=False, seed=seed)
        found.append(torch.cat([q.codes.reshape(-1) for q, _ in quantizers(model, block)]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_activation_scales_learn(ground):
    model, blocks, points = ground
    model.freeze()
    calibrate_activations(model, points, minmax_range)
    block = blocks["mid_block"]
    acts = [p.act_quantizer for n in block.layers for p in model.layers[n].part_list()]
    for quantizer in acts:  # ranges far too wide, as an outlier would make them
        quantizer.scale.data *= 8
    before = [(float(q.scale), float(q.zero_point)) for q in acts]
    schedule = Schedule(80, batch=8, lr=3e-2, norm=2.4)
    (report,) = reconstruct(model, [block], points, tune_act_scales, schedule, acts=True, seed=0)
    assert report.after < 0.85 * report.before
    for quantizer, (scale, zero) in zip(acts, before, strict=True):
        assert 0 < float(quantizer.scale) != scale
        assert float(quantizer.zero_point) == zero
        assert not quantizer.scale.requires_grad


def test_every_block_is_reported_in_order(ground):
    model, blocks, points = ground
    ticks = []
    reports = reconstruct(
        model, [*blocks.values()], points, tune_rounding, Schedule(1, 4), acts=False, seed=0,
        progress=lambda done, total: ticks.append((done, total)),
    )  # fmt: skip
    assert [report.name for report in reports] == [*blocks]
    assert ticks == [(i + 1, len(blocks)) for i in range(len(blocks))]
    assert all(q.codes is not None for b in blocks.values() for q, _ in quantizers(model, b))


def test_loss_sums_channels_and_means_the_rest():
    output = torch.zeros(2, 3, 4, 4)
    assert reconstruction_loss(output, output + 2, 2.0) == pytest.approx(12.0)
    assert reconstruction_loss(torch.zeros(2, 5, 7), torch.ones(2, 5, 7), 2.4) == pytest.approx(7.0)


def test_hooks_go_away_when_a_tuner_fails(ground):
    model, blocks, points = ground

    def broken(layers, schedule):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        reconstruct(model, [*blocks.values()], points, broken, QUICK, acts=False, seed=0)
    assert not any(m._forward_pre_hooks for m in model.module.modules() if isinstance(m, nn.Module))
