import pytest
import torch

from quantarena.methods.core.record.points import CalibrationSet


@pytest.mark.parametrize(
    ("shape", "most"),
    [((4, 8, 8), 64), ((3, 32, 32), 64), ((4, 64, 64), 12), ((4, 128, 128), 3), ((3, 512, 512), 1)],
)
def test_a_pass_has_64_points_and_fewer_of_large_inputs(shape, most):
    count = 70 if shape[-1] < 128 else 4
    points = CalibrationSet(torch.zeros(count, *shape), torch.zeros(count), torch.zeros(count))
    sizes = [len(subset) for subset in points.batches()]
    assert sizes[0] == max(sizes) == most
    assert sum(sizes) == count
    assert next(len(subset) for subset in points.batches(2)) == 2


def test_points_move_in_another_type_but_for_timesteps_and_integers():
    conditions = {"labels": torch.arange(3), "more": [{"text": torch.randn(3, 5)}, None, 0.5]}
    points = CalibrationSet(
        torch.randn(3, 4, 2, 2), torch.tensor([999.0, 501.0, 1.0]), torch.arange(3), conditions
    )
    there = points.on("meta", torch.bfloat16)
    assert (there.sample.device.type, there.sample.dtype) == ("meta", torch.bfloat16)
    assert (there.timestep.device.type, there.timestep.dtype) == ("meta", torch.float32)
    labels, (nested, *plain) = there.conditions["labels"], there.conditions["more"]
    assert (labels.device.type, labels.dtype) == ("meta", torch.int64)
    assert (nested["text"].device.type, nested["text"].dtype) == ("meta", torch.bfloat16)
    assert plain == [None, 0.5]
    assert there.step is points.step, "nothing that a network is not given moves"
    as_they_are = points.on(torch.device("meta"))
    assert as_they_are.sample.dtype == torch.float32
    assert as_they_are.conditions["more"][0]["text"].dtype == torch.float32
    near = points.on("cpu", torch.bfloat16)
    assert torch.equal(near.timestep, points.timestep)
    assert torch.equal(near.sample.float(), points.sample.to(torch.bfloat16).float())
    assert points.on(None) is points
