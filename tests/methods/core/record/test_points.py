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
