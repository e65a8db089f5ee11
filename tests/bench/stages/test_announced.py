"""Recorded calls of real pipelines, and networks that are told which call they are at."""

import copy
from dataclasses import replace

import pytest
import torch

from quantarena.bench.cache import Keyed, StageCache
from quantarena.bench.errors import UserError
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages import networks, sequence
from quantarena.bench.stages.fp_images import fp_images
from quantarena.bench.stages.quantize import Quantized
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.sample import sampled
from quantarena.bench.stages.workspace import open_workspace
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.packed.pack import PackedModel

BUDGET = Budget(
    images=3, batch=2, steps=3, calibration_images=3, calibration_samples=4, latency_rounds=20
)


@pytest.fixture(scope="module", params=["pixel_folder", "class_folder"])
def workspace(request):
    folder = request.getfixturevalue(request.param)
    return open_workspace(Cell(str(folder), "rtn", "w4a8", budget=BUDGET))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return StageCache(tmp_path_factory.mktemp("cache"))


def banked(workspace, recorded):
    """The network itself, noting the sampler call of each of its calls."""
    clock, module, used = CallClock(recorded.schedule), copy.deepcopy(workspace.loaded.denoiser), []

    def note(module, args, kwargs):
        used.append(clock.index)

    module.register_forward_pre_hook(note, with_kwargs=True)
    return PackedModel(module, {}, "packed", clock), used


def draw(workspace, packed, cache, tag):
    return sampled(workspace, packed, f"{tag} {workspace.info.path}", cache).value[0]


def test_recording_knows_sampler_halves_and_conditions(workspace, cache):
    recorded = trajectory(workspace, cache)
    guided = workspace.info.guidance > 1
    assert (recorded.calls, recorded.images, recorded.halves) == (3, 3, 1 + guided)
    assert recorded.schedule.sampler == "DDIMScheduler"
    assert list(recorded.schedule.timesteps) == recorded.timestep.tolist()
    if guided:
        labels = recorded.conditions["class_labels"]
        assert labels[0].tolist() == [7, 5, 3, 1000, 1000, 1000]
        assert labels.stride(0) == 0, "stored once a call"
        assert torch.equal(recorded.sample[:, :3], recorded.sample[:, 3:])
    assert "step" not in vars(workspace.loaded.pipe.scheduler)


def test_sampling_tells_the_network_which_call_it_is_at(workspace, cache):
    packed, used = banked(workspace, trajectory(workspace, cache))
    drawn = draw(workspace, packed, cache, "same")
    assert used == [0, 1, 2, 0, 1, 2]  # two batches
    assert torch.equal(drawn.images, fp_images(workspace, cache).images)
    assert not packed.clock.is_set


def test_other_steps_than_calibrated_are_one_line(workspace, cache):
    packed, used = banked(workspace, trajectory(workspace, cache))
    longer = replace(workspace, budget=replace(BUDGET, steps=5))
    with pytest.raises(UserError, match=r"for 3 calls of DDIM.* has 5 calls of DDIM"):
        draw(longer, packed, cache, "longer")
    assert used == []
    assert "step" not in vars(workspace.loaded.pipe.scheduler)


def test_timing_says_one_call_for_the_whole_batch(workspace, cache, monkeypatch, tmp_path):
    packed, used = banked(workspace, trajectory(workspace, cache))
    made = Keyed(Quantized(None, {}, 0.0), "key")
    monkeypatch.setattr(networks, "quantized", lambda *args: made)
    monkeypatch.setattr(networks, "pack", lambda model: packed)
    cell = Cell(str(workspace.info.path), "rtn", "w4a8", budget=BUDGET)
    timed = sequence.time_cell(
        Row(cell, Status.OK), sequence.Paths(tmp_path, cache.root), progress=lambda *tick: None
    )
    assert timed.latency.step_ms > 0
    assert set(used) == {1}
