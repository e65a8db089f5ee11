from dataclasses import replace

import pytest
import torch

from quantarena.bench.cache import StageCache
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.fp_images import fp_images
from quantarena.bench.stages.real_images import real_features
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.workspace import open_workspace

BUDGET = Budget(images=2, batch=2, steps=2, calibration_images=3, calibration_samples=4)


@pytest.fixture(scope="module")
def workspace(pixel_folder):
    return open_workspace(Cell(str(pixel_folder), "rtn", "w4a8", budget=BUDGET))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return StageCache(tmp_path_factory.mktemp("cache"))


def test_trajectory_is_recorded_once_and_comes_back(workspace, cache):
    first = trajectory(workspace, cache)
    assert (first.calls, first.rows) == (2, 3)
    again = trajectory(workspace, cache)
    assert torch.equal(first.sample, again.sample)
    assert len([p for p in cache.root.iterdir() if p.name.startswith("trajectory")]) == 1


def test_calibration_and_evaluation_never_share_noise(workspace, cache):
    recorded = trajectory(workspace, cache)
    drawn = fp_images(workspace, cache)
    other = fp_images(replace(workspace, budget=replace(BUDGET, images=3, batch=3)), cache)
    assert drawn.noise_sha256 != other.noise_sha256
    assert workspace.draw().purpose == "evaluate"
    assert workspace.draw(calibration=True).purpose == "calibrate"
    assert recorded.sample.shape[0] == workspace.steps


def test_images_come_back_bit_by_bit(workspace, cache):
    first, again = (fp_images(workspace, cache) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.noise_sha256 == again.noise_sha256


@pytest.mark.parametrize("change", [{"steps": 3}, {"batch": 1}, {"images": 3}])
def test_keys_see_the_draw(workspace, change):
    other = replace(workspace, budget=replace(BUDGET, **change))
    assert other.key(other.draw()) != workspace.key(workspace.draw())


def test_keys_see_guidance_conditions_seed_and_weights(workspace):
    draw = workspace.draw()
    others = [
        replace(workspace, info=replace(workspace.info, guidance=2.0)),
        replace(workspace, info=replace(workspace.info, prompts=("a", "b"))),
        replace(workspace, info=replace(workspace.info, eta=0.5)),
        replace(workspace, loaded=replace(workspace.loaded, sha256="0")),
    ]
    keys = {other.key(draw) for other in others} | {workspace.key(draw)}
    keys.add(replace(workspace, seed=1).key(replace(workspace, seed=1).draw()))
    assert len(keys) == 6


def test_workload_without_reference_has_no_features(workspace, cache):
    assert real_features(workspace, cache) is None
