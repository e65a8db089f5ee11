"""What counts as a network's prediction."""

import types

import pytest
import torch
from torch import nn

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.nested import prediction
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.trace.network import trace

X = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    "output",
    [X, (X, None), [X], {"sample": X, "other": None}, types.SimpleNamespace(sample=X)],
    ids=["tensor", "tuple", "list", "mapping", "object"],
)
def test_every_usual_output_holds_one(output):
    assert prediction(output, nn.Identity()) is X


@pytest.mark.parametrize("output", [None, (), {"logits": X}, 3.0])
def test_another_output_is_refused_in_a_line(output):
    with pytest.raises(Unsupported, match=r"Identity returns a .* must return its prediction"):
        prediction(output, nn.Identity())


@pytest.mark.parametrize("wrapped", [lambda y: y, lambda y: {"sample": y}], ids=["alone", "dict"])
def test_networks_that_return_no_tuple_are_traced_and_run(wrapped):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, sample, timestep, return_dict=False):
            return wrapped(self.layer(sample))

    network = Net()
    assert list(trace(network, X, timestep=torch.zeros(2)).layers) == ["layer"]
    points = CalibrationSet(X, torch.zeros(2), torch.zeros(2, dtype=torch.long))
    assert points.call(network).shape == X.shape  # all rows, not the first of them
