"""Which modules are given a row, or several, for each calibration point."""

import pytest
import torch
from torch import nn

from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.rows import Rows, module_rows

POINTS = CalibrationSet(torch.randn(6, 3, 4), torch.zeros(6), torch.zeros(6, dtype=torch.long))


class Places(nn.Module):
    """One linear layer for each way in which an input can follow the batch, or not."""

    def __init__(self):
        super().__init__()
        names = ("rows", "flat", "tokens_first", "table", "vector", "first", "halved", "each")
        self.layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})

    def forward(self, x, timestep=None, return_dict=False):
        inputs = {
            "rows": x,
            "flat": x.flatten(0, 1),
            "tokens_first": x.transpose(0, 1),
            "table": torch.ones(4, 4),
            "vector": torch.ones(4),
            "first": x[:1],
            "halved": x[: len(x) // 2],
        }
        for name, value in inputs.items():
            self.layers[name](value)
        for row in x:
            self.layers["each"](row[None])
        return (x,)


def counted(network, *names):
    return module_rows(network, POINTS, names, lambda points: points.call(network))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("rows", Rows((1,), 1, 3)),
        ("flat", Rows((3,), 3, 2)),
        ("tokens_first", Rows((), 0, 3)),
        ("table", Rows((), 0, 2)),
        ("vector", Rows((), 0, 1)),
        ("first", Rows((), 0, 3)),
        ("halved", Rows((), 0, 3)),
        ("each", Rows((), 0, 3)),
    ],
)
def test_rows_are_what_grows_with_the_points(name, rows):
    found = counted(Places(), f"layers.{name}")[f"layers.{name}"]
    assert found == rows
    assert found.learns == found.follows == (name in ("rows", "flat"))


def test_a_module_called_with_and_without_rows_does_not_follow():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, timestep=None, return_dict=False):
            return (self.layer(x) + self.layer(torch.ones(1, 4)),)

    assert not counted(Twice(), "layer")["layer"].follows


def test_a_block_learns_where_all_that_changes_is_cut_alike():
    assert Rows((1, 1), 1, 3).learns
    assert Rows((3,), 3, 2).learns
    assert not Rows((1, 0), 1, 3).learns
    assert not Rows((1, 3), 1, 3).learns
    assert not Rows((1,), 0, 3).learns
