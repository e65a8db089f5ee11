"""Losses on held-out points: measured before and after, and nothing learns from them."""

import pytest
import torch

from quantarena.methods.core.record.held_out import held_out
from quantarena.methods.techniques.learn import reconstruct as reconstruct_module
from quantarena.methods.techniques.learn.param_groups import Group
from quantarena.methods.techniques.learn.reconstruct import _held, reconstruct
from quantarena.methods.techniques.learn.schedule import Schedule

QUICK = Schedule(60, {"rounding": Group(0.1)}, batch=8)


@pytest.fixture
def apart(pixel, points):
    return held_out(pixel.trajectory, points, 8, 0)


@pytest.fixture
def learned(make, cut, pixel, points):
    def learned(held, schedule=QUICK):
        model = make(pixel)
        blocks = cut(model, points)[:3]
        reports = reconstruct(model, blocks, points, schedule, acts=False, seed=0, held_out=held)
        codes = [
            part.weight_quantizer.codes
            for block in blocks
            for name in block.layers
            for part in model.layers[name].parts
        ]
        return reports, torch.cat([each.reshape(-1) for each in codes])

    return learned


def test_they_change_no_code_and_no_other_loss(learned, apart):
    with_them, codes = learned(apart)
    without, same = learned(None)
    assert torch.equal(codes, same)
    assert [(r.before, r.after) for r in with_them] == [(r.before, r.after) for r in without]


def test_both_losses_are_of_other_points_and_fall(learned, apart):
    reports, _ = learned(apart)
    for report in reports:
        assert report.held_after < report.held_before
        if report.name != "time_embedding":  # all points share its inputs
            assert report.held_before != pytest.approx(report.before, rel=1e-6)
        assert {"held_before", "held_after"} <= report.note().keys()


def test_the_same_points_have_the_same_losses(learned, points):
    """Of the training points themselves the two measurements must agree."""
    reports, _ = learned(points)
    for report in reports:
        assert report.held_before == pytest.approx(report.before, rel=1e-5)
        assert report.held_after == pytest.approx(report.after, rel=1e-5)


@pytest.mark.parametrize("schedule", [QUICK, Schedule(0, {"rounding": Group(0.1)})])
def test_without_points_or_training_nothing_is_said(learned, apart, schedule):
    reports, _ = learned(apart if not schedule.iterations else None, schedule)
    assert all(report.held_before is report.held_after is None for report in reports)
    assert "held_before" not in reports[0].note()


def test_short_trainings_take_few_points():
    assert _held(Schedule(100, {}, batch=4)) == 25
    assert _held(Schedule(4, {}, batch=4)) == 8


def test_a_few_of_them_still_visit_early_and_late_calls(learned, pixel, points, monkeypatch):
    seen = []
    original = reconstruct_module.ProblemMaker

    def spy(model, schedule, steps, *rest):
        seen.append(steps)
        return original(model, schedule, steps, *rest)

    monkeypatch.setattr(reconstruct_module, "ProblemMaker", spy)
    learned(held_out(pixel.trajectory, points, 32, 0), Schedule(1, {"rounding": Group(0.1)}))
    _, apart = sorted(seen, key=len, reverse=True)
    assert len(apart) == 8
    assert (int(apart.min()), int(apart.max())) == (0, pixel.trajectory.calls - 1)
