"""Recorded steps against steps as written; run it with ``--benchmark-only``.

Networks are the zoo's, at RTN ranges of a few points; what ranges are does not change a time.
"""

import pytest
import torch

from quantarena.bench.workloads import pipeline, registry
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.kernels import native
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.step.recorded import RecordedStep
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.timing.steps import in_turns, ratio, share_outside

LARGEST_SHARE = 0.05
"""Of a recorded step, that Python and torch may take."""
ROWS = 16


def points_of(network):
    """One call on random numbers."""
    make = torch.Generator().manual_seed(0)
    config = network.config
    conditions = {}
    if getattr(config, "encoder_hid_dim_type", 0) is None:
        width = config.cross_attention_dim
        conditions["encoder_hidden_states"] = torch.randn(ROWS, 24, width, generator=make)
    if "num_embeds_ada_norm" in config:
        conditions["class_labels"] = torch.randint(0, 4, (ROWS,), generator=make)
    sample = torch.randn(ROWS, config.in_channels, *[config.sample_size] * 2, generator=make)
    times = torch.full((ROWS,), 500)
    return CalibrationSet(sample, times, torch.zeros(ROWS, dtype=torch.long), conditions)


@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 8)], ids=str)
@pytest.mark.parametrize("name", ["emoji-dit", "emoji-t2i", "cifar10-uncond"])
def test_a_recorded_step_is_native_and_no_slower(benchmark, name, bits):
    if native.library().run is None:
        pytest.skip("needs native kernels")
    network = pipeline.load(registry.resolve(name)).denoiser
    points = points_of(network)
    graph = trace(
        network,
        points.sample[:2],
        timestep=points.timestep[:2],
        **{key: value[:2] for key, value in points.conditions.items()},
    )
    model = wrap(network, graph, UNIFORM.assign(graph, bits))
    model.set_weight_ranges(minmax_range)
    calibrate_activations(model, points, minmax_range)
    model.freeze()
    packed = pack(model)
    step = RecordedStep(packed.module, packed.clock)
    given = {"timestep": points.timestep, "return_dict": False, **points.conditions}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), packed.clock.at(0):
            plan = step.plan(points.sample, **given)
            benchmark(points.call, step)
            calls = {
                "written": lambda: points.call(packed.module),
                "recorded": lambda: points.call(step),
            }
            times = in_turns(calls, 7)
            outside = share_outside(step, plan, lambda: step(points.sample, **given), 7)
    finally:
        torch.set_num_threads(threads)
    faster = ratio(times["written"], times["recorded"])
    benchmark.extra_info.update(ratio=faster, outside=outside, native_pieces=plan.native_pieces)
    assert (plan.native_pieces, plan.torch_pieces) == (1, 0)
    assert outside < LARGEST_SHARE
    assert faster > 1
