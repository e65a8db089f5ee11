"""One reconstruction iteration against full precision, and the share of caching in a hundred."""

import copy
import time
from dataclasses import replace

import pytest
import torch

from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.learn import reconstruct as engine
from quantarena.methods.techniques.learn.losses import reconstruction_loss
from quantarena.methods.techniques.learn.optimise import optimise
from quantarena.methods.techniques.learn.schedule import Schedule
from quantarena.methods.techniques.ranges.minmax import minmax_range

STEPS = 10
SCHEDULES = {
    "rounding": Schedule.adaround(STEPS),
    "act_scales": replace(Schedule.act_scales(STEPS), batch=32),
}


@pytest.fixture
def ready(bench, cell_of):
    """A w4a8 model with all ranges, its blocks and points."""
    context = bench.context(cell_of("q_diffusion", "w4a8"))
    model = context.wrap(splits=True)
    model.set_weight_ranges(minmax_range)
    points = context.draw(UniformStride(context.effort.samples))
    calibrate_activations(model, points, minmax_range)
    return context, model, context.blocks(model, points), points


def chosen(context, blocks):
    """The largest block with a shortcut, the largest with tokens, and one in the middle."""
    layers = context.graph.layers

    def weights(block):
        return sum(layers[name].weights for name in block.layers)

    split = [b for b in blocks if any(layers[n].splits for n in b.layers)]
    many = [b for b in blocks if len(b.layers) >= 9]
    middle = [b for b in blocks if "mid_block" in b.name and len(b.layers) > 1]
    return {
        kind: max(found, key=weights).name
        for kind, found in (("shortcut", split), ("transformer", many), ("middle", middle))
        if found
    }


def seconds(work, rounds=9):
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return sorted(times)[rounds // 2]


@pytest.mark.parametrize("stage", SCHEDULES)
@pytest.mark.parametrize("kind", ["shortcut", "transformer", "middle"])
def test_iteration(benchmark, bench, ready, monkeypatch, stage, kind):
    context, model, blocks, points = ready
    name = chosen(context, blocks).get(kind)
    if name is None:
        pytest.skip(f"{bench.workload} has no such block")
    if stage == "act_scales":
        model.freeze()
    schedule, acts = SCHEDULES[stage], stage == "act_scales"

    def spy(workspace, learning, given, generator):
        def step():
            return optimise(workspace, learning, schedule, generator)

        full = copy.deepcopy(context.model.get_submodule(name)).requires_grad_(True)
        index = torch.arange(min(schedule.batch, len(points)))
        args, kwargs = workspace.arrival.at(index)

        def plain():
            full.zero_grad(set_to_none=True)
            output = full(*args, **kwargs)
            reconstruction_loss(output, workspace.target[index], 2.0).backward()

        with torch.enable_grad():
            plain()
            turns = [(seconds(plain), seconds(step, 3) / STEPS) for _ in range(3)]
        benchmark.pedantic(step, rounds=3)
        benchmark.extra_info.update(
            block=name,
            stage=stage,
            iterations=STEPS,
            batch=len(index),
            ratio_to_fp_forward_backward=min(t for _, t in turns) / min(t for t, _ in turns),
            threads=torch.get_num_threads(),
        )
        return STEPS

    monkeypatch.setattr(engine, "optimise", spy)
    block = [b for b in blocks if b.name == name]
    engine.reconstruct(model, block, points, schedule, acts=acts, seed=0)
    assert benchmark.extra_info["ratio_to_fp_forward_backward"] > 0


def test_caching(benchmark, ready):
    _, model, blocks, points = ready

    def run(iterations):
        fresh = copy.deepcopy(model)
        start = time.process_time()
        schedule = Schedule.adaround(iterations)
        engine.reconstruct(fresh, blocks, points, schedule, acts=False, seed=0)
        return time.process_time() - start

    caching = benchmark.pedantic(run, (0,), rounds=3)
    iterations = (run(STEPS) - caching) / STEPS
    benchmark.extra_info.update(
        points=len(points), blocks=len(blocks), share_of_100_iterations=caching / (100 * iterations)
    )
    assert iterations > 0
