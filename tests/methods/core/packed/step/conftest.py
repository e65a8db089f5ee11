"""Packed networks of three shapes, and what calls them."""

import pytest
import torch

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.kernels import native
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.testing.networks import probes

NAMES = ("pixel-unet", "conditional-unet", "transformer")


def packed_and_probe(number, method="rtn"):
    """A packed network and the recording that it was calibrated on."""
    probe = list(probes())[number]
    return pack(entry(method).method().run(probe.context(Bits(4, 8), "paper", Effort(8, 0)))), probe


@pytest.fixture(scope="module", params=range(3), ids=NAMES)
def made(request):
    if native.library().run is None:
        pytest.skip("needs native kernels")
    return packed_and_probe(request.param)


class Call:
    """Arguments of a call on recorded points, and the sampler call that they are at."""

    def __init__(self, probe, call, rows):
        self.points = probe.trajectory.pick(
            torch.full((rows,), call), torch.arange(rows) % probe.trajectory.rows
        )
        self.at = call
        self.kwargs = {
            "timestep": self.points.timestep,
            "return_dict": False,
            **self.points.conditions,
        }

    def on(self, network, clock):
        with torch.no_grad(), clock.at(self.at):
            return network(self.points.sample, **self.kwargs)[0]


@pytest.fixture
def call_of():
    return Call


@pytest.fixture
def packed_of():
    return packed_and_probe
