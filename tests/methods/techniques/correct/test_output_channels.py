import pytest
import torch
from torch import nn

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.trace.network import Role
from quantarena.methods.techniques.correct.output_channels import output_channels


def test_every_channel_of_the_last_layer_is_found(probe):
    name = next(n for n, x in probe.graph.layers.items() if x.role is Role.OUTPUT)
    points = probe.heldout.rows(slice(0, 2))
    owner = output_channels(probe.model, name, points)
    with torch.no_grad():
        plain = points.call(probe.model)
    assert owner.shape == probe.model.get_submodule(name).weight.shape[:1]
    assert sorted(set(owner.tolist())) == list(range(plain.shape[1]))
    bias = probe.model.get_submodule(name).bias
    before = bias.data.clone()
    try:  # a shift of the layer's channels is a shift of the prediction's
        bias.data += torch.arange(plain.shape[1]).float()[owner]
        with torch.no_grad():
            moved = points.call(probe.model) - plain
    finally:
        bias.data = before
    wanted = torch.arange(plain.shape[1]).float().reshape(1, -1, 1, 1).expand_as(moved)
    assert torch.allclose(moved, wanted, atol=1e-4)


class Preconditioned(nn.Module):
    """The prediction is not the last layer's output but that and a share of the sample."""

    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, sample, timestep=None, return_dict=True):
        return (0.3 * sample + self.last(sample),)


def test_more_than_a_rearrangement_is_refused(pixel):
    points = pixel.heldout.rows(slice(0, 2))
    with pytest.raises(Unsupported, match="rearrangement of the channels of last"):
        output_channels(Preconditioned(), "last", points)
