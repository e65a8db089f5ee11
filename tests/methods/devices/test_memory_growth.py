"""What methods add to the memory of a loaded network, as a share of its float32 weights.

The network is almost nothing but weights: 200 MB of them, which a few tokens go through. A second
copy of its float weights beside the loaded ones breaks every bound here.
"""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from quantarena.bench.memory import peak_growth
from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.network import tensor_bytes
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.quantizers import recent_values
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import trace
from quantarena.methods.info import Effort
from quantarena.methods.registry import method_entry

WIDTH, INNER, PAIRS = 256, 3072, 32
CALLS, ROWS = 2, 2


class Pair(nn.Module):
    """A wide residual block."""

    def __init__(self, inner):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, inner), nn.Linear(inner, WIDTH)

    def forward(self, x):
        return x + self.down(torch.nn.functional.silu(self.up(x)))


class Wide(nn.Module):
    """Takes images (B, 4, 2, 2)."""

    def __init__(self, inner, pairs):
        super().__init__()
        self.first, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.pairs = nn.ModuleList(Pair(inner) for _ in range(pairs))

    def forward(self, sample, timestep=None, return_dict=True):
        x = self.first(sample.flatten(2).transpose(1, 2))
        for pair in self.pairs:
            x = pair(x)
        return (self.last(x).transpose(1, 2).reshape(sample.shape),)


def given(inner, pairs):
    """What a method is given for such a network, and points of its trajectory."""
    torch.manual_seed(0)
    network = Wide(inner, pairs).eval().requires_grad_(False)
    times = torch.arange(CALLS).float()
    recorded = Trajectory(torch.randn(CALLS, ROWS, 4, 2, 2), times, {})
    points = recorded.pick(torch.arange(CALLS), torch.zeros(CALLS, dtype=torch.long))
    graph = trace(network, points.sample, timestep=times[:1])
    effort = Effort(CALLS * ROWS, 2)
    bits = Bits(4, 8)
    return MethodContext(network, graph, recorded, bits, UNIFORM, "paper", 0, effort), points


def growths(method, context, points, weights):
    """What quantizing adds at its peak, then packing, then the parity gate, as shares."""
    made = []

    def pack_it():
        made.append(pack(made[0]))

    steps = (
        lambda: made.append(method.run(context)),
        pack_it,
        lambda: parity(made[0], made[1], points),
    )
    return [peak_growth(step) / weights for step in steps]


def measured(name, options):
    """The growths of a method, in a process that has loaded all libraries before."""
    recent_values.CODED.room = recent_values.MOVED.room = 1 << 24
    method = method_entry(name, ()).configured(tuple(options.items()))
    growths(method, *given(64, 2), 1)  # libraries that are loaded at first use
    context, points = given(INNER, PAIRS)
    return growths(method, context, points, tensor_bytes(context.model))


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "options", "most"),
    [
        ("rtn", {}, 0.6),
        ("svdquant", {"grid": "2", "rounds": "1", "rank": "8"}, 0.8),
        ("q_diffusion", {}, 0.8),
    ],
)
def test_no_second_copy_of_the_weights(name, options, most):
    # Large tensors go back to the system when they are freed, so that no hole counts as memory.
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    child = [sys.executable, __file__, json.dumps([name, options])]
    done = subprocess.run(child, env=exact, capture_output=True, text=True, check=True)
    quantizing, *rest = json.loads(done.stdout.splitlines()[-1])
    assert quantizing < most, quantizing
    assert max(rest) < 0.8, rest


if __name__ == "__main__":
    print(json.dumps(measured(*json.loads(sys.argv[1]))))
