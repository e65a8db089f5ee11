import pytest
import torch

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import trace
from quantarena.methods.info import Effort

CALLS, ROWS, HELD = 4, 8, 4


def _judged(method, network, bits):
    network = network.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(CALLS, ROWS + HELD, 4, 6, 6, generator=generator)
    times = torch.arange(CALLS).float()
    recorded = Trajectory(sample[:, :ROWS], times, {})
    graph = trace(network, sample[0, :2], timestep=times[:1])
    made = method().run(
        MethodContext(network, graph, recorded, bits, UNIFORM, "paper", 0, Effort(32, 0))
    )
    step = torch.arange(CALLS).repeat_interleave(HELD)
    points = Trajectory(sample[:, ROWS:], times, {}).pick(step, torch.arange(HELD).repeat(CALLS))
    with torch.no_grad():
        target = points.call(network)
        gap = (made.run(points) - target).square().mean() / target.square().mean()
    return made, float(gap)


@pytest.fixture
def judged():
    """A method's model of a network that takes (B, 4, 6, 6), and its relative error elsewhere.

    The sampler has four calls, timesteps 0 to 3; the error is on other images, each point at its
    own call; nothing is learned.
    """
    return _judged
