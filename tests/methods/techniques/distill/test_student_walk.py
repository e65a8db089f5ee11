"""Learning on own walks: whose samples are kept, what each stage updates, and what it leaves."""

import dataclasses

import pytest
import torch

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import UserError
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.record.steps import WholeWalks
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.calibrate.plan import CalibrationPlan
from quantarena.methods.techniques.distill import serial_parallel as module
from quantarena.methods.techniques.distill.serial_parallel import distill_on_student_walks
from quantarena.methods.techniques.distill.serial_parallel_settings import (
    SerialParallel,
    SerialParallelReport,
)
from quantarena.methods.techniques.distill.student_walk import (
    LabelledPoints,
    fit_walks,
    student_walk,
)
from quantarena.methods.techniques.learn.learning import start_learning
from quantarena.methods.techniques.learn.oscillation import Freezing
from quantarena.methods.techniques.learn.param_groups import Group
from quantarena.methods.techniques.ranges.minmax import minmax_range

SCALES = {"act_scale": Group(0.01, relative=True), "weight_scale": Group(0.002, relative=True)}


def student(probe):
    model = wrap(probe.model, probe.graph, UNIFORM.assign(probe.graph, Bits(3, 4)))
    points = WholeWalks(4).draw(probe.trajectory, 0)
    model.set_weight_ranges(minmax_range)
    calibrate_activations(model, points, minmax_range, CalibrationPlan(per_call=True))
    return model, fit_walks(probe.model, points)


def learner(model, probe, walks, stages, groups=SCALES):
    learning = start_learning(model.layers, [], groups)
    return module._Learner(
        model, probe.model, walks, stages, learning, SerialParallelReport(), None
    )


@torch.no_grad()
def walked(model, walks):
    """Samples of the network's own walk, call after call."""
    images = torch.arange(walks.images)
    return torch.cat([p.sample for _, p in student_walk(walks, images, lambda p, _: model.run(p))])


def test_full_precision_walks_as_recorded(probe):
    model, walks = student(probe)
    recorded = walks.recorded.points.sample
    with model.using(weights=False, acts=False):
        assert torch.allclose(walked(model, walks), recorded, atol=2e-3)
    assert not torch.allclose(walked(model, walks), recorded, atol=2e-3)


def test_the_serial_stage_keeps_the_students_samples(pixel):
    model, walks = student(pixel)
    still = SerialParallel({n: Group(0.0) for n in SCALES}, 1, 0)
    kept = learner(model, pixel, walks, still).serial(torch.arange(walks.images))
    assert torch.allclose(kept.points.sample, walked(model, walks), atol=1e-5)
    assert torch.equal(kept.points.step, walks.recorded.points.step)
    with torch.no_grad():  # full precision answers on the samples that were met
        assert torch.allclose(kept.targets, kept.points.call(pixel.model), atol=1e-4)
    with torch.no_grad():
        for layer in model.layers.values():
            layer.parts[0].weight_quantizer.scale *= 1.1
    other = learner(model, pixel, walks, still).serial(torch.arange(walks.images))
    rows = walks.rows(0, torch.arange(walks.images))
    assert torch.equal(other.points.sample[rows], kept.points.sample[rows]), "the first noise"
    assert not torch.allclose(other.points.sample, kept.points.sample, atol=1e-3)


@pytest.mark.parametrize(
    ("serial", "first", "own"),
    [
        (True, True, True),
        (True, False, False),
        (False, True, False),
    ],
)
def test_whose_samples_the_first_parallel_stage_sees(pixel, monkeypatch, serial, first, own):
    model, walks = student(pixel)
    seen = []
    monkeypatch.setattr(module._Learner, "parallel", lambda self, pairs, _: seen.append(pairs))
    distill_on_student_walks(
        model,
        pixel.model,
        walks,
        SerialParallel(SCALES, 2, 1, serial=serial, serial_first=first),
        seed=0,
    )
    recorded = {
        tuple(sample.flatten().tolist()) for sample in walks.recorded.points.sample[walks.images :]
    }

    def met(pairs):  # beyond the first noise, which both have
        rows = pairs.points.sample[pairs.points.step > 0]
        return not any(tuple(sample.flatten().tolist()) in recorded for sample in rows)

    assert met(seen[0]) == own
    assert met(seen[1]) == serial


def test_a_batch_of_mixed_calls_is_the_loop(pixel):
    model, walks = student(pixel)
    mixed = walks.recorded.points.rows(torch.tensor([13, 0, 7, 10, 2]))
    with torch.no_grad():
        assert torch.allclose(
            model.run(mixed), torch.cat([model.run(p) for p in mixed.batches(1)]), atol=1e-5
        )


def test_scales_of_a_call_that_was_not_met_stay(pixel):
    model, walks = student(pixel)
    before = {n: x.parts[0].static.scale.detach().clone() for n, x in model.layers.items()}
    met = torch.cat([walks.rows(call, torch.arange(walks.images)) for call in (0, 2)])
    pairs = LabelledPoints(walks.recorded.points.rows(met), walks.recorded.targets[met])
    teach = learner(model, pixel, walks, SerialParallel(SCALES, 1, 5, batch=3))
    teach.parallel(pairs, torch.Generator().manual_seed(0))
    moved = torch.zeros(walks.calls)
    for name, layer in model.layers.items():
        moved += (layer.parts[0].static.scale.detach() != before[name]).float()
    assert moved[1] == moved[3] == 0
    assert moved[0] > 0
    assert moved[2] > 0


def test_the_order_of_one_batch_does_not_matter(pixel):
    found = []
    for seed in (0, 1):
        model, walks = student(pixel)
        teach = learner(model, pixel, walks, SerialParallel(SCALES, 1, 1, batch=64))
        teach.parallel(walks.recorded, torch.Generator().manual_seed(seed))
        found.append(torch.cat([x.parts[0].static.scale.detach() for x in model.layers.values()]))
    assert torch.allclose(*found, rtol=1e-3)


def test_a_guided_error_is_that_of_the_guided_prediction(pixel):
    model, walks = student(pixel)
    step = dataclasses.replace(walks.step, halves=torch.tensor([[2.0, -6.0]]).expand(3, 2))
    two = dataclasses.replace(walks, step=step, halves=2, images=2)
    calls, gap = torch.tensor([0, 0, 3, 3]), torch.randn(4, 3, 8, 8)
    teach = learner(model, pixel, two, SerialParallel(SCALES, 1, 1))
    wanted = (-0.5 * gap[::2] + 1.5 * gap[1::2]).square().mean()
    assert torch.allclose(teach.error(calls, gap), wanted)
    plain = learner(model, pixel, two, SerialParallel(SCALES, 1, 1, guided=False))
    assert torch.allclose(plain.error(calls, gap), gap.square().mean())


@pytest.mark.parametrize("features", [(), ("mid_block",)])
def test_losses_fall_and_codes_are_frozen(pixel, features):
    model, walks = student(pixel)
    ticks = []
    stages = SerialParallel(
        SCALES | {"weight": Group(0.01, relative=True)},
        4,
        4,
        batch=8,
        window=2,
        features=features,
        feature_weight=0.1,
    )
    report = distill_on_student_walks(
        model, pixel.model, walks, stages, seed=0, progress=lambda *tick: ticks.append(tick)
    )
    counts = {stage: len(losses) for stage, losses in report.losses.items()}
    assert counts == {"serial": 4 * 2, "parallel": 4 * 4 * 2}
    assert ticks[-1] == (stages.updates(walks), stages.updates(walks)) == (40, 40)
    points = walks.images * walks.calls
    assert report.teacher_rows == 4 * points * (1 + len(features) * 5)
    assert sum(report.losses["parallel"][-4:]) < 0.9 * sum(report.losses["parallel"][:4])
    for layer in model.layers.values():
        assert all(part.weight_quantizer.codes is not None for part in layer.parts)
        assert bool((layer.parts[0].static.scale > 0).all())


def test_scales_stay_positive_at_any_rate(pixel):
    model, walks = student(pixel)
    wild = SerialParallel({"act_scale": Group(3.0, relative=True)}, 1, 3, batch=8)
    distill_on_student_walks(model, pixel.model, walks, wild, seed=0)
    assert all(bool((x.parts[0].static.scale > 0).all()) for x in model.layers.values())


def test_weights_that_turn_are_frozen_and_reported(pixel):
    model, walks = student(pixel)
    groups = {"weight": Group(0.3, relative=True)}
    stages = SerialParallel(groups, 1, 12, batch=8, freezing=Freezing(0.01, 0.2))
    assert 0 < distill_on_student_walks(model, pixel.model, walks, stages, seed=0).frozen < 1
    model, _ = student(pixel)
    still = dataclasses.replace(stages, freezing=None)
    assert distill_on_student_walks(model, pixel.model, walks, still, seed=0).frozen == 0


def test_a_loss_that_is_no_number_ends_it_with_codes(pixel):
    model, walks = student(pixel)
    wanted = torch.full_like(walks.recorded.targets, float("nan"))
    broken = dataclasses.replace(walks, recorded=LabelledPoints(walks.recorded.points, wanted))
    with pytest.raises(UserError, match="diverged at update 0"):
        distill_on_student_walks(
            model, pixel.model, broken, SerialParallel(SCALES, 1, 1, serial=False), seed=0
        )
    assert all(x.parts[0].weight_quantizer.codes is not None for x in model.layers.values())
