"""Errors on points that no walk visited: whose they are, and that methods report them."""

from dataclasses import replace

import pytest
import torch

from quantarena.methods import quest, serial_to_parallel
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.record.steps import AllCalls
from quantarena.methods.info import Effort
from quantarena.methods.registry import method_entry
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.distill.distill import Distillation, distill
from quantarena.methods.techniques.distill.held_out import NOTHING_HELD, Judge
from quantarena.methods.techniques.distill.teacher_walk import teacher_walk
from quantarena.methods.techniques.learn.param_groups import Group
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.testing.networks import ROWS

FEW = {  # options with which some of the few images do not walk
    "mpq_dm": {"batch": 2},
    "efficient_dm": {"batch": 2},
    "quest": {"batch": 2},
    "tuneqdm": {"batch": 2},
    "serial_to_parallel": {"images": 2},
}


@pytest.fixture
def points(pixel):
    return AllCalls().draw(pixel.trajectory, 0)


@pytest.fixture
def student(pixel, points):
    model = wrap(pixel.model, pixel.graph, UNIFORM.assign(pixel.graph, Bits(3, 8)))
    model.set_weight_ranges(minmax_range)
    calibrate_activations(model, points, minmax_range)
    return model


def test_errors_are_those_of_the_prediction(pixel, student, points):
    judge = Judge.of(pixel.model, points)
    errors = judge.errors(student)
    with torch.no_grad(), student.using(weights=True, acts=True):
        ours, theirs = student.run(points), points.call(pixel.model)
    whole = (ours - theirs).square().flatten(1).sum(1) / theirs.square().flatten(1).sum(1)
    assert torch.allclose(errors, whole, rtol=1e-4)
    assert judge.errors(student).equal(errors), "measuring changes nothing"
    assert float(errors.min()) > 0


def test_points_of_images_that_walked_are_left_out(pixel, points):
    judge = Judge(points, points.sample)
    errors = points.image.float()
    last = pixel.trajectory.images - 1
    assert judge.unseen(errors, set(range(last))) == last
    assert judge.unseen(errors, set(range(last + 1))) is None
    assert judge.unseen(errors, set()) == pytest.approx(float(errors.mean()))


def test_the_report_is_of_the_frozen_codes_on_images_that_did_not_walk(pixel, student, points):
    calls = pixel.trajectory.calls
    settings = Distillation(calls, {"lora": Group(0.05, relative=True)}, rank=4)
    walk = teacher_walk(pixel.trajectory, 2)  # one walk of two images
    before = Judge.of(pixel.model, points).errors(student)
    report = distill(student, pixel.model, walk, settings, seed=0, judged=points)
    assert student.notes["training"]["images"] == 2
    after = Judge.of(pixel.model, points).errors(student)
    images = torch.arange(pixel.trajectory.images)
    pairs = torch.combinations(images, 2)

    def without(errors, pair):
        return float(errors[~torch.isin(points.image, pair)].mean())

    matches = [
        pair.tolist()
        for pair in pairs
        if report.held_before == pytest.approx(without(before, pair), rel=1e-5)
    ]
    assert len(matches) == 1, "one pair of images walked"
    assert report.held_after == pytest.approx(without(after, torch.tensor(matches[0])), rel=1e-5)
    assert report.held_after != report.held_before


def test_two_trainings_count_the_images_of_both_once(pixel, student):
    settings = Distillation(pixel.trajectory.calls, {"act_scale": Group(1e-4)})
    walked = []
    for seed in (0, 1):
        walk = teacher_walk(pixel.trajectory, 3)  # one walk of three images
        first = walk.start

        def start(generator, first=first):
            points = first(generator)
            walked.append(set(points.image.tolist()))
            return points

        distill(student, pixel.model, replace(walk, start=start), settings, seed=seed)
    union = set.union(*walked)
    assert max(map(len, walked)) < len(union) < sum(map(len, walked)), "they share some, not all"
    assert student.notes["training"]["images"] == len(union)
    assert student.notes["training"]["updates"] == 2 * pixel.trajectory.calls


def test_quest_counts_the_images_of_both_stages(pixel, monkeypatch):
    walked = []

    def spied(model, teacher, walk, schedule, *, seed, **rest):
        first = walk.start

        def start(generator):
            points = first(generator)
            walked.append(set(points.image.tolist()))
            return points

        return distill(
            model, teacher, replace(walk, start=start), schedule, seed=len(walked), **rest
        )

    monkeypatch.setattr(quest, "distill", spied)
    method = quest.QuEST(quest.QuEST.Options(batch=3))
    made = method.run(pixel.context(Bits(4, 8), "paper", Effort(8, 1, range_samples=8)))
    assert len(walked) == 2, "one walk of each stage"
    union = set.union(*walked)
    assert len(union) > max(map(len, walked))
    assert made.notes["training"]["images"] == len(union)


@pytest.mark.parametrize("name", FEW)
def test_methods_that_learn_on_walks_say_on_how_many_images_and_what_it_gave(
    name, pixel, monkeypatch
):
    monkeypatch.setattr(serial_to_parallel, "LEAST_FITTED", 1)
    method = method_entry(name)
    bits = Bits(4, 16) if name == "tuneqdm" else Bits(4, 8)
    ctx = pixel.context(bits, method.supports.variants[0], Effort(8, 1, range_samples=8))
    notes = method(method.Options(**FEW[name])).run(ctx).notes
    found = list(held(notes))
    assert found, f"{name} has no error on held-out points"
    assert all(before > 0 and after > 0 for before, after in found)
    if name != "serial_to_parallel":  # its draw says so
        assert 0 < notes["training"]["images"] <= pixel.trajectory.images


@pytest.mark.parametrize("name", FEW)
def test_where_every_image_walked_the_notes_say_that_nothing_was_held_out(name, pixel, monkeypatch):
    monkeypatch.setattr(serial_to_parallel, "LEAST_FITTED", 1)
    method = method_entry(name)
    everything = {"images": 0} if name == "serial_to_parallel" else {"batch": ROWS}
    more = {"data_free": False} if name == "efficient_dm" else {}
    bits = Bits(4, 16) if name == "tuneqdm" else Bits(4, 8)
    ctx = pixel.context(bits, method.supports.variants[0], Effort(8, 1, range_samples=8))
    notes = method(method.Options(**FEW[name] | everything | more)).run(ctx).notes
    assert NOTHING_HELD in str(notes)
    assert not list(held({k: v for k, v in notes.items() if k != "reconstruction"}))


def held(notes):
    """Pairs of errors before and after, wherever they are in the notes."""
    if isinstance(notes, dict):
        if notes.get("held_before") is not None:
            yield notes["held_before"], notes["held_after"]
        for value in notes.values():
            yield from held(value)
    elif isinstance(notes, list | tuple):
        for value in notes:
            yield from held(value)
