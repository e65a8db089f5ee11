"""Walks through a recording: whose rows, in which order, and what each next sample is."""

import dataclasses

import pytest
import torch

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.record.steps import WholeWalks, points_per_call
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.techniques.distill.teacher_walk import teacher_walk, whole_walks
from quantarena.methods.techniques.distill.walk import Driver, walk_calls

CALLS, IMAGES = 5, 4


def recorded(constant=True):
    """A point's value is ``100 call + row``; its condition is its row."""
    rows = torch.arange(2 * IMAGES).float()
    call = torch.arange(CALLS).float()[:, None]
    condition = rows.expand(CALLS, -1) if constant else rows + call
    sample = (100 * call + rows)[..., None, None, None]
    return Trajectory(sample, torch.arange(CALLS).flip(0) * 10, {"context": condition}, halves=2)


def test_rows_are_the_same_at_every_call_and_halves_stay_together():
    points = WholeWalks(6).draw(recorded(), seed=1)
    rows = points.conditions["context"].reshape(CALLS, 6)
    assert torch.equal(rows, rows[:1].expand_as(rows))
    assert len(rows[0].unique()) == 6
    assert torch.equal(rows[0, ::2] + IMAGES, rows[0, 1::2])
    assert points.histogram() == dict.fromkeys(range(CALLS), 6)
    others = WholeWalks(6).draw(recorded(), seed=2).conditions["context"][:6]
    assert not torch.equal(others, rows[0])
    with pytest.raises(ValueError, match="9 points at one step"):
        WholeWalks(9).draw(recorded(), seed=1)


def test_a_walk_reads_the_recording():
    walk = teacher_walk(recorded(), batch=3)
    assert walk.timesteps.tolist() == [40, 30, 20, 10, 0]
    unused = {driver: lambda points: torch.tensor(float("nan")) for driver in Driver}
    generator = torch.Generator().manual_seed(0)
    starts = []
    for _ in range(3):  # walks begin anew, on other rows
        for call, points in walk_calls(walk, unused, generator):
            rows = points.conditions["context"]
            assert torch.equal(points.sample.flatten(), 100 * call + rows)
            assert points.timestep.tolist() == [10 * (CALLS - 1 - call)] * 3
        starts.append(tuple(rows.tolist()))
    assert len(set(starts)) > 1


def test_all_rows_walk_before_one_walks_again():
    """Whatever the batch; no walk has a row twice."""
    for batch in (3, 5, 8, 20):
        walk = teacher_walk(recorded(), batch)
        generator = torch.Generator().manual_seed(0)
        size = min(batch, 2 * IMAGES)
        rows = [walk.start(generator).conditions["context"] for _ in range(2 * IMAGES)]
        assert all(len(each.unique()) == len(each) == size for each in rows)
        dealt = torch.cat(rows).long()
        counts = torch.bincount(dealt, minlength=2 * IMAGES)
        assert int(counts.max() - counts.min()) <= 1, "the deck is dealt evenly"


def test_whole_walks_visit_every_call_equally():
    assert [whole_walks(n, 20) for n in (0, 1, 16, 20, 21, 160)] == [0, 20, 20, 20, 40, 160]


def test_conditions_that_change_are_refused():
    with pytest.raises(Unsupported, match="context changes from call to call"):
        teacher_walk(recorded(constant=False), batch=2)


def test_conditions_of_all_points_may_be_anything():
    made = recorded()
    fixed = dataclasses.replace(
        made, conditions={**made.conditions, "grid": torch.rand(3)}, fixed=frozenset({"grid"})
    )
    assert len(teacher_walk(fixed, batch=2).timesteps) == CALLS


@pytest.mark.parametrize(("samples", "count"), [(5, 1), (17, 3), (1000, 8)])
def test_points_are_shared_evenly(samples, count):
    assert points_per_call(recorded(), samples) == count


def test_fewer_points_than_calls_are_refused():
    with pytest.raises(Unsupported, match="5 calls, the preset allows 4"):
        points_per_call(recorded(), 4)
