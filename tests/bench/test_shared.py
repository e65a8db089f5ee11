from dataclasses import replace

import pytest
import torch

from quantarena.bench import shared
from quantarena.bench.cache import StageCache
from quantarena.bench.spec import Budget, Cell

BUDGET = Budget(images=2, batch=2, steps=2, calibration_images=3, calibration_samples=4)


@pytest.fixture(scope="module")
def ground(pixel_folder):
    return shared.open_ground(Cell(str(pixel_folder), "rtn", "w4a8", budget=BUDGET))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return StageCache(tmp_path_factory.mktemp("cache"))


def test_trajectory_is_recorded_once_and_comes_back(ground, cache):
    first = shared.trajectory(ground, cache)
    assert (first.calls, first.rows) == (2, 3)
    again = shared.trajectory(ground, cache)
    assert torch.equal(first.sample, again.sample)
    assert len([p for p in cache.root.iterdir() if p.name.startswith("trajectory")]) == 1


def test_calibration_and_evaluation_never_share_noise(ground, cache):
    recorded = shared.trajectory(ground, cache)
    drawn = shared.fp_images(ground, cache)
    other = shared.fp_images(replace(ground, budget=replace(BUDGET, images=3, batch=3)), cache)
    assert drawn.noise_sha256 != other.noise_sha256
    assert ground.draw().purpose == "evaluate"
    assert ground.draw(calibration=True).purpose == "calibrate"
    assert recorded.sample.shape[0] == ground.steps


def test_images_come_back_bit_by_bit(ground, cache):
    first, again = (shared.fp_images(ground, cache) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.noise_sha256 == again.noise_sha256


@pytest.mark.parametrize("change", [{"steps": 3}, {"batch": 1}, {"images": 3}])
def test_keys_see_the_draw(ground, change):
    other = replace(ground, budget=replace(BUDGET, **change))
    assert other.key(other.draw()) != ground.key(ground.draw())


def test_keys_see_guidance_conditions_seed_and_weights(ground):
    draw = ground.draw()
    others = [
        replace(ground, info=replace(ground.info, guidance=2.0)),
        replace(ground, info=replace(ground.info, prompts=("a", "b"))),
        replace(ground, info=replace(ground.info, eta=0.5)),
        replace(ground, loaded=replace(ground.loaded, sha256="0")),
    ]
    keys = {other.key(draw) for other in others} | {ground.key(draw)}
    keys.add(replace(ground, seed=1).key(replace(ground, seed=1).draw()))
    assert len(keys) == 6


def test_workload_without_reference_has_no_features(ground, cache):
    assert shared.real_features(ground, cache) is None
