"""Points that a method did not learn from: they are really others, and of other images."""

import pytest
import torch

from quantarena.methods.core.record.held_out import held_out
from quantarena.methods.core.record.steps import AllCalls, UniformStride
from quantarena.methods.core.record.trajectory import Trajectory

CALLS, IMAGES = 5, 6


@pytest.fixture(params=[1, 2])
def recorded(request):
    """Every sample holds its own call and row."""
    rows = IMAGES * request.param
    sample = torch.arange(CALLS * rows, dtype=torch.float32).reshape(CALLS, rows, 1, 1, 1)
    return Trajectory(sample, torch.arange(CALLS), {}, halves=request.param)


def values(points):
    return set(points.sample.flatten().tolist())


def test_they_come_from_images_that_were_not_learned_from(recorded):
    few = recorded.pick(torch.tensor([0, 1, 4]), torch.tensor([0, 1, 2]))
    found = held_out(recorded, few, 10, 0)
    assert len(found) == 10
    assert set(found.image.tolist()) <= {3, 4, 5}
    assert set(found.step.tolist()) == set(range(CALLS))
    assert values(held_out(recorded, few, 10, 0)) == values(found)
    assert values(held_out(recorded, few, 10, 1)) != values(found)


def test_where_every_image_was_learned_from_they_are_other_calls(recorded):
    points = UniformStride(recorded.rows * 2).draw(recorded, 0)
    assert len(set(points.image.tolist())) == IMAGES
    found = held_out(recorded, points, 1000, 0)
    assert values(found) & values(points) == set()
    assert len(values(found)) == len(found) == recorded.calls * recorded.rows - len(values(points))


def test_where_all_was_learned_from_there_are_none(recorded):
    assert held_out(recorded, AllCalls().draw(recorded, 0), 8, 0) is None


def test_points_of_unknown_images_have_none(recorded):
    points = recorded.pick(torch.tensor([0]), torch.tensor([0]))
    known = points.rows(slice(0, 1))
    object.__setattr__(known, "image", None)
    assert held_out(recorded, known, 8, 0) is None
