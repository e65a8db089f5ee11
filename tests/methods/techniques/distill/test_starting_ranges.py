"""Banks whose entries start equal: which calls share a range, and on which points it is found."""

import pytest
import torch

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.record.steps import AllCalls
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.calibrate.plan import CalibrationPlan
from quantarena.methods.techniques.distill.starting_ranges import calibrate_by_group
from quantarena.methods.techniques.ranges.minmax import minmax_range


def scales(probe, calibrate):
    """Each layer's activation scales."""
    model = wrap(probe.model, probe.graph, UNIFORM.assign(probe.graph, Bits(4, 4)))
    model.set_weight_ranges(minmax_range)
    calibrate(model, AllCalls().draw(probe.trajectory, 0))
    assert len(model.clock.schedule.timesteps) == probe.trajectory.calls
    return [part.static.scale for layer in model.layers.values() for part in layer.parts]


def by_group(groups, **more):
    return lambda model, points: calibrate_by_group(model, points, minmax_range, groups, **more)


def by_call(model, points):
    calibrate_activations(model, points, minmax_range, CalibrationPlan(per_call=True))


@pytest.mark.parametrize(
    ("groups", "first"),
    [(1, [0, 0, 0, 0]), (2, [0, 0, 2, 2]), (3, [0, 0, 2, 2]), (4, [0, 1, 2, 3])],
)
def test_calls_of_a_group_start_with_one_range(pixel, groups, first):
    for scale in scales(pixel, by_group(groups)):
        assert torch.equal(scale, scale[first])
    found = torch.stack(scales(pixel, by_group(groups)))
    distinct = len(set(first))
    assert any(len(scale.unique()) == distinct for scale in found)


def test_as_many_groups_as_calls_are_ranges_by_call(pixel):
    found, wanted = scales(pixel, by_group(20)), scales(pixel, by_call)
    assert all(map(torch.equal, found, wanted))


def test_a_group_covers_the_points_of_all_its_calls(pixel):
    for shared, own in zip(scales(pixel, by_group(1)), scales(pixel, by_call), strict=True):
        assert float(shared[0]) >= 0.99 * float(own.max())


def test_few_points_give_narrower_ranges(pixel):
    pairs = zip(scales(pixel, by_group(1, count=2)), scales(pixel, by_group(1)), strict=True)
    assert all(float(few[0]) <= 1.001 * float(all_[0]) for few, all_ in pairs)
    with pytest.raises(ValueError, match="one group at least"):
        scales(pixel, by_group(0))
