"""Recorded calls of real pipelines, and networks that are told which call they are at."""

import copy
from dataclasses import replace

import pytest
import torch

from quantarena.bench import shared, stages, stations
from quantarena.bench.cache import StageCache
from quantarena.bench.errors import UserError
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Budget, Cell
from quantarena.methods.core.clock import StepClock
from quantarena.methods.core.pack import PackedModel

BUDGET = Budget(
    images=3, batch=2, steps=3, calibration_images=3, calibration_samples=4, latency_rounds=20
)


@pytest.fixture(scope="module", params=["pixel_folder", "class_folder"])
def ground(request):
    folder = request.getfixturevalue(request.param)
    return shared.open_ground(Cell(str(folder), "rtn", "w4a8", budget=BUDGET))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return StageCache(tmp_path_factory.mktemp("cache"))


def banked(ground, recorded):
    """The network itself, noting the sampler call of each of its calls."""
    clock, module, used = StepClock(recorded.schedule), copy.deepcopy(ground.loaded.denoiser), []

    def note(module, args, kwargs):
        used.append(clock.index)

    module.register_forward_pre_hook(note, with_kwargs=True)
    return PackedModel(module, {}, "packed", clock), used


def draw(ground, packed, cache, tag):
    work = stations.Work(stage_keys={"quantize": f"{tag} {ground.info.path}"})
    cell = Cell(str(ground.info.path), "rtn", "w4a8", budget=ground.budget)
    return stations.sampled(ground, packed, cell, cache, work, lambda *tick: None)


def test_recording_knows_sampler_halves_and_conditions(ground, cache):
    recorded = shared.trajectory(ground, cache)
    guided = ground.info.guidance > 1
    assert (recorded.calls, recorded.images, recorded.halves) == (3, 3, 1 + guided)
    assert recorded.schedule.sampler == "DDIMScheduler"
    assert list(recorded.schedule.timesteps) == recorded.timestep.tolist()
    if guided:
        labels = recorded.conditions["class_labels"]
        assert labels[0].tolist() == [7, 5, 3, 1000, 1000, 1000]
        assert labels.stride(0) == 0, "stored once a call"
        assert torch.equal(recorded.sample[:, :3], recorded.sample[:, 3:])
    assert "step" not in vars(ground.loaded.pipe.scheduler)


def test_sampling_tells_the_network_which_call_it_is_at(ground, cache):
    packed, used = banked(ground, shared.trajectory(ground, cache))
    drawn = draw(ground, packed, cache, "same")
    assert used == [0, 1, 2, 0, 1, 2]  # two batches
    assert torch.equal(drawn.images, shared.fp_images(ground, cache).images)
    assert not packed.clock.is_set


def test_other_steps_than_calibrated_are_one_line(ground, cache):
    packed, used = banked(ground, shared.trajectory(ground, cache))
    longer = replace(ground, budget=replace(BUDGET, steps=5))
    with pytest.raises(UserError, match=r"for 3 calls of DDIM.* has 5 calls of DDIM"):
        draw(longer, packed, cache, "longer")
    assert used == []
    assert "step" not in vars(ground.loaded.pipe.scheduler)


def test_timing_says_one_call_for_the_whole_batch(ground, cache, monkeypatch, tmp_path):
    packed, used = banked(ground, shared.trajectory(ground, cache))
    monkeypatch.setattr(stages, "quantized", lambda *args: (None, {}))
    monkeypatch.setattr(stages, "pack", lambda model: packed)
    cell = Cell(str(ground.info.path), "rtn", "w4a8", budget=BUDGET)
    timed = stages.time_cell(
        Row(cell, Status.OK), stages.Paths(tmp_path, cache.root), progress=lambda *tick: None
    )
    assert timed.latency.step_ms > 0
    assert set(used) == {1}
