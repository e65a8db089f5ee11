"""DGQ's ranges: groups that lie beyond zero, and the margin for what calibration did not see."""

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.options.input_offset import InputOffset
from quantarena.methods.core.packed.nodes.rebuild import build
from quantarena.methods.core.packed.pack import observe, pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.dgq import Dgq
from quantarena.methods.techniques.calibrate import axis_groups

CALLS = 4


class Tokens(nn.Module):
    """36 tokens of 48 channels into the middle layer, with heavy tails if ``heavy``."""

    def __init__(self, heavy=False):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 48), nn.Linear(48, 16), nn.Linear(16, 4)
        self.heavy = heavy

    def forward(self, sample, timestep=None, return_dict=True):
        x = self.first(sample.flatten(2).mT)
        x = x**3 if self.heavy else torch.tanh(x)
        return (self.last(torch.tanh(self.back(x))).mT.reshape(sample.shape),)

    def back(self, x):
        return self.middle(x)


def variant(**off):
    """DGQ with some of its ideas set otherwise."""
    return lambda: Dgq(Dgq.Options(**off))


def packed_and_rebuilt(made, network):
    """The packed middle layer, made again from what it stores; packing keeps parity and widths."""
    trajectory = Trajectory(torch.randn(CALLS, 2, 4, 6, 6), torch.arange(CALLS).float(), {})
    points = trajectory.pick(torch.arange(CALLS), torch.ones(CALLS, dtype=torch.long))
    packed = pack(made)
    assert parity(made, packed, points).max_rel <= 1e-5
    observe(made, packed, network)
    node = packed.layers["middle"]
    again = build(node.describe(), {name: t.clone() for name, t in node.state_dict().items()})
    again.set_clock(made.clock)
    return again


class OffsetChannels(Tokens):
    """Five channels lie far from zero."""

    def __init__(self):
        super().__init__()
        self.offset = torch.zeros(48)
        self.offset[[3, 17, 18]], self.offset[[30, 41]] = 30.0, -20.0

    def back(self, x):
        return self.middle(x + self.offset) - self.offset @ self.weight.T

    @property
    def weight(self):
        return self.middle.weight


def test_channels_far_from_zero_lose_no_codes(judged, monkeypatch):
    network = OffsetChannels()
    made, error = judged(variant(least=1), network, Bits(8, 4))
    option = made.layers["middle"].option(InputOffset)
    assert (option.offset != 0).equal(network.offset != 0)
    again = packed_and_rebuilt(made, network)
    loaded = QuantLayer(network.middle, Bits(8, 4), clock=made.clock)
    loaded.load(made.layers["middle"].state())
    x = torch.randn(2, 36, 48) + network.offset
    with torch.no_grad(), made.clock.at(0):
        assert torch.allclose(again(x), loaded(x), rtol=1e-5, atol=1e-4)
        assert torch.equal(loaded(x), made.layers["middle"](x))
    monkeypatch.setattr("quantarena.methods.dgq.move_to_zero", lambda layer, bounds, ids: bounds)
    assert judged(variant(least=1), network, Bits(8, 4))[1] >= 10 * error


class OffsetTokens(Tokens):
    """Half of the tokens, or the same pixels, lie far from zero."""

    def __init__(self, conv):
        super().__init__()
        self.offset = torch.zeros(36, 1)
        self.offset[::4], self.offset[1::4] = 30.0, -20.0
        if conv:
            self.middle = nn.Conv2d(48, 16, 1)

    def back(self, x):
        moved, weight = x + self.offset, self.middle.weight.flatten(1)
        if weight.shape == self.middle.weight.shape:
            y = self.middle(moved)
        else:
            y = self.middle(moved.mT.reshape(len(x), -1, 6, 6)).flatten(2).mT
        return y - self.offset * weight.sum(1)


@pytest.mark.parametrize("conv", [False, True])
def test_tokens_far_from_zero_lose_no_codes(judged, monkeypatch, conv):
    network = OffsetTokens(conv)
    made, error = judged(variant(least=1), network, Bits(8, 4))
    assert made.notes["groups"]["middle"]["axis"] == "positions"
    zero = made.layers["middle"].only_part.static.zero_point
    assert float(zero.min()) < 0
    assert float(zero.max()) > 15
    again = packed_and_rebuilt(made, network)
    x = torch.randn(2, 36, 48) + network.offset
    x = x.mT.reshape(2, 48, 6, 6) if conv else x
    with torch.no_grad(), made.clock.at(0):
        assert torch.allclose(again(x), made.layers["middle"](x), rtol=1e-5, atol=1e-4)
    found = axis_groups.group_params
    monkeypatch.setattr(axis_groups, "group_params", lambda *args, with_zero: found(*args))
    assert judged(variant(least=1), network, Bits(8, 4))[1] >= 5 * error


def test_a_margin_covers_what_calibration_did_not_see(judged):
    """At 8 bits clipped values cost more than steps; ranges of 4 bits have none."""
    network = Tokens(heavy=True)
    with torch.no_grad():
        network.middle.weight /= 8
    few = {"least": 1, "adaround": False}
    plain = judged(variant(**few, margin=0.0), network, Bits(8, 8))[1]
    assert judged(variant(**few), network, Bits(8, 8))[1] <= 0.8 * plain
    narrow = [judged(variant(**few, margin=m), network, Bits(8, 4))[0] for m in (0.0, 0.1)]
    scales = [made.layers["middle"].only_part.static.scale for made in narrow]
    assert torch.equal(*scales)
