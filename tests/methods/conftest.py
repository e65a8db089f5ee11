import pytest
import torch
from torch import Tensor, nn

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.kernels import formats
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import trace
from quantarena.methods.info import Effort

CALLS, ROWS, HELD = 4, 8, 4


def _judged(method, network, bits, policy=UNIFORM):
    network = network.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(CALLS, ROWS + HELD, 4, 6, 6, generator=generator)
    times = torch.arange(CALLS).float()
    recorded = Trajectory(sample[:, :ROWS], times, {})
    graph = trace(network, sample[0, :2], timestep=times[:1])
    made = method().run(
        MethodContext(network, graph, recorded, bits, policy, "paper", 0, Effort(32, 0))
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


class Uneven(nn.Module):
    """Six residual layers of one size, two of which make fifty times as much as the others."""

    gains = (0.02, 1.0, 0.02, 0.02, 1.0, 0.02)

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 32), nn.Linear(32, 4)
        self.middle = nn.ModuleList(nn.Linear(32, 32) for _ in self.gains)

    def forward(self, sample, timestep=None, return_dict=True):
        x = torch.tanh(self.first(sample.flatten(2).transpose(1, 2)))
        for gain, layer in zip(self.gains, self.middle, strict=True):
            x = x + gain * torch.tanh(layer(x))
        return (self.last(x).transpose(1, 2).reshape(sample.shape),)


@pytest.fixture
def uneven():
    """A network of layers that differ in what their widths are worth, at one cost."""
    torch.manual_seed(0)
    return Uneven()


def random_layer(
    shape: tuple[int, ...],
    weight_bits: int,
    act_bits: int,
    *,
    seed: int = 0,
    asymmetric: bool = False,
    codes: str = "normal",
    steps: int = 0,
    multiplier: bool = False,
    groups: int = 1,
    bias: bool = True,
    **geometry: tuple[int, int],
) -> IntegerLayer:
    """A layer with codes ``normal``, ``uniform``, ``low``, ``high`` or ``extreme`` (either end)."""
    make = torch.Generator().manual_seed(seed)
    low, high = formats.code_range(weight_bits)
    if codes == "normal":
        values = (torch.randn(shape, generator=make) * (high + 1) / 3).round().clamp(low, high)
    elif codes == "uniform":
        values = torch.randint(low, high + 1, shape, generator=make)
    else:
        either = torch.rand(shape, generator=make) < 0.5
        values = torch.where(either, low, high)
        if codes in ("low", "high"):
            values = torch.full(shape, low if codes == "low" else high)
    out, top = shape[0], (1 << act_bits) - 1
    table = (steps,) if steps else ()
    zero = torch.randint(low, high + 1, (out,), generator=make) if asymmetric else torch.zeros(out)
    return IntegerLayer(
        kind="linear" if len(shape) == 2 else "conv2d",
        weight_codes=values.to(torch.int8),
        weight_bits=weight_bits,
        weight_scale=torch.rand(out, generator=make) * 0.1 + 0.01,
        weight_zero=zero.to(torch.int32),
        act_bits=act_bits,
        act_scale=torch.rand(table, generator=make) * 6 / top + 0.01,
        act_zero=torch.randint(0, top + 1, table, generator=make),
        in_mult=torch.rand(shape[1] * groups, generator=make) + 0.5 if multiplier else None,
        bias=torch.randn(out, generator=make) if bias else None,
        groups=groups,
        **geometry,
    )


def random_input(shape: tuple[int, ...], seed: int = 1, extreme: bool = False) -> Tensor:
    """Normal values, or only values that saturate the quantizer at either end."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=make) * 3
    return torch.where(x > 0, 1e9, -1e9) if extreme else x


@pytest.fixture
def make_layer():
    return random_layer


@pytest.fixture
def make_input():
    return random_input
