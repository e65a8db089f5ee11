"""Noise predictions and last latents on a tiny pipeline."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from quantarena.bench import inside, shared
from quantarena.bench.cache import StageCache
from quantarena.bench.metrics.catalogue import LATENT, SQNR
from quantarena.bench.metrics.steps import SQNR_CAP
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stations import Work, quantized, sampled
from quantarena.methods.core.pack import pack
from quantarena.methods.registry import entry

BUDGET = Budget(images=4, batch=3, steps=3, calibration_images=2, calibration_samples=4)


@pytest.fixture(scope="module")
def ground(pixel_folder):
    return shared.open_ground(Cell(str(pixel_folder), "rtn", "w8a8", budget=BUDGET))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return StageCache(tmp_path_factory.mktemp("cache"))


def packed_at(ground, cache, bits):
    """The packed network of round-to-nearest, and what draws its images."""
    cell, work = Cell(ground.info.name, "rtn", bits, budget=BUDGET), Work()
    recorded = shared.trajectory(ground, cache)
    method = entry("rtn").method()
    model, _ = quantized(ground, recorded, cell, method, cache, work, lambda *_: None)
    packed = pack(model)

    def draw():
        return sampled(ground, packed, cell, cache, work, lambda *_: None)

    return packed, draw, lambda: work.stage_keys["images"]


def test_probe_repeats_the_first_evaluation_images(ground, cache):
    seen = inside.probe(ground, cache)
    assert seen.recorded.images == 4
    assert seen.predictions.shape[:2] == seen.recorded.sample.shape[:2] == (3, 4)
    # the first call starts from evaluation noise, which calibration never saw
    calibration = shared.trajectory(ground, cache)
    assert not torch.equal(seen.recorded.sample[0, :2], calibration.sample[0])
    again = inside.probe(ground, cache)
    assert torch.equal(seen.predictions, again.predictions)


def test_full_precision_is_perfect_inside(ground, cache):
    class Network:
        module = ground.loaded.denoiser
        clock = packed_at(ground, cache, "w8a8")[0].clock

    _, last = inside.fp_latents(ground, cache)
    found, curve = inside.closeness(Network, inside.probe(ground, cache), last, last)
    assert (found[SQNR] == SQNR_CAP).all()
    assert (found[LATENT] == 0).all()
    assert curve[f"curve:{SQNR}"].shape == (3, 4)


def test_fewer_bits_are_farther(ground, cache):
    _, fp_last = inside.fp_latents(ground, cache)
    seen, found = inside.probe(ground, cache), {}
    for bits in ("w8a8", "w4a8", "w4a4"):
        packed, draw, key = packed_at(ground, cache, bits)
        drawn, last = inside.last_latents(ground, cache, key, draw)
        assert drawn.images.shape[0] == len(last) == 4
        found[bits], curve = inside.closeness(packed, seen, fp_last, last)
        np.testing.assert_allclose(curve[f"curve:{SQNR}"].mean(0), found[bits][SQNR])
    for metric, sign in ((SQNR, 1), (LATENT, -1)):
        means = [sign * found[bits][metric].mean() for bits in ("w8a8", "w4a8", "w4a4")]
        assert means == sorted(means, reverse=True)
        assert means[0] > means[-1]


def test_last_latents_are_the_image_of_a_pixel_model(ground, cache):
    drawn, last = inside.fp_latents(ground, cache)
    image = ((last / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(image, drawn.images)


def test_images_without_their_latents_are_drawn_again(ground, tmp_path):
    cache = StageCache(tmp_path)
    shared.fp_images(ground, cache)  # as a run that was stopped here leaves it
    drawn, last = inside.fp_latents(ground, cache)
    assert len(last) == len(drawn.images)
    image = ((last / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(image, drawn.images)


def test_reasons(ground, cache):
    packed, *_ = packed_at(ground, cache, "w8a8")
    seen = inside.probe(ground, cache)
    broken = replace(seen, predictions=seen.predictions * float("nan"))
    found, curve = inside.closeness(packed, broken, None, None)
    assert "call 0 are not finite" in found[SQNR]
    assert "does not say what its steps return" in found[LATENT]
    assert curve == {}


@pytest.mark.parametrize(("prompts", "want"), [((), None), (("a", "b", "a"), (0, 1, 0, 0, 1))])
def test_prompts_that_repeat_are_one_unit(ground, prompts, want):
    assert shared.prompt_groups(replace(ground.info, prompts=prompts), 5) == want
