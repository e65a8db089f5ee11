"""Range searches of a whole model: all weights at 4 bits, all inputs at 8, on one thread.

The tensors are those that round-to-nearest would search at W4A8 under the uniform policy.
"""

import time

import pytest
import torch

from quantarena.bench.cache import StageCache
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.workspace import open_workspace
from quantarena.bench.workloads import registry as workloads
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.named import SEARCHES

ZOO = "emoji-t2i"
POINTS = 128
LIMIT = 2.0
"""Seconds that the default search by MSE may take."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Arguments of every search: (tensor, bits, axis)."""
    if ZOO not in workloads.names():
        pytest.skip(f"needs the workload {ZOO}")
    torch.set_num_threads(1)
    workspace = open_workspace(Cell(ZOO, "fp", "fp", budget=Budget(calibration_images=8)))
    recorded = trajectory(workspace, StageCache(tmp_path_factory.mktemp("cache")))
    first = recorded.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    original = workspace.loaded.denoiser
    graph = trace(original, first.sample, timestep=first.timestep, **first.conditions)
    model = wrap(original, graph, UNIFORM.assign(graph, Bits(4, 8)))
    seen = []

    def note(x, bits, *, axis=None, symmetric=False):
        seen.append((x, bits, axis))
        return minmax_range(x, bits, axis=axis, symmetric=symmetric)

    model.set_weight_ranges(note)
    calibrate_activations(model, UniformStride(POINTS).draw(recorded, 0), note)
    return seen


@pytest.mark.parametrize("name", SEARCHES)
def test_whole_model(benchmark, searched, name):
    search = SEARCHES[name]
    seconds = []

    def run():
        start = time.process_time()
        for x, bits, axis in searched:
            search(x, bits, axis=axis)
        seconds.append(time.process_time() - start)

    benchmark.pedantic(run, rounds=1 if name == "mse_2d" else 3)
    benchmark.extra_info.update(
        tensors=len(searched),
        values=sum(x.numel() for x, _, _ in searched),
        threads=torch.get_num_threads(),
        cpu_seconds=min(seconds),
    )
    if name == "mse":
        assert min(seconds) <= LIMIT
