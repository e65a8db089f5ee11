"""Noise predictions and last latents on a tiny pipeline."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from quantarena.bench.cache import StageCache
from quantarena.bench.metrics.fidelity.noise_error import SQNR_CAP
from quantarena.bench.metrics.names import LATENT, SQNR
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.closeness import closeness, probe
from quantarena.bench.stages.fp_images import fp_images
from quantarena.bench.stages.latents import fp_latents, last_latents
from quantarena.bench.stages.quantize import quantized
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.sample import images_key, sampled
from quantarena.bench.stages.workspace import open_workspace, prompt_groups
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.registry import entry

BUDGET = Budget(images=4, batch=3, steps=3, calibration_images=2, calibration_samples=4)


@pytest.fixture(scope="module")
def workspace(pixel_folder):
    return open_workspace(Cell(str(pixel_folder), "rtn", "w8a8", budget=BUDGET))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return StageCache(tmp_path_factory.mktemp("cache"))


def packed_at(workspace, cache, bits):
    """The packed network of round-to-nearest, and what draws its images."""
    cell = Cell(workspace.info.name, "rtn", bits, budget=BUDGET)
    recorded = trajectory(workspace, cache)
    method = entry("rtn").method()
    made = quantized(workspace, recorded, cell, method, cache, lambda *_: None)
    packed = pack(made.value.model)

    def draw():
        return sampled(workspace, packed, made.key, cache).value[0]

    return packed, draw, images_key(workspace, packed, made.key)


def test_probe_repeats_the_first_evaluation_images(workspace, cache):
    seen = probe(workspace, cache)
    assert seen.recorded.images == 4
    assert seen.predictions.shape[:2] == seen.recorded.sample.shape[:2] == (3, 4)
    # the first call starts from evaluation noise, which calibration never saw
    calibration = trajectory(workspace, cache)
    assert not torch.equal(seen.recorded.sample[0, :2], calibration.sample[0])
    again = probe(workspace, cache)
    assert torch.equal(seen.predictions, again.predictions)


def test_full_precision_is_perfect_inside(workspace, cache):
    class Network:
        module = workspace.loaded.denoiser
        clock = packed_at(workspace, cache, "w8a8")[0].clock

    _, last = fp_latents(workspace, cache)
    found, curve = closeness(Network, probe(workspace, cache), last, last)
    assert (found[SQNR] == SQNR_CAP).all()
    assert (found[LATENT] == 0).all()
    assert curve[f"curve:{SQNR}"].shape == (3, 4)


def test_fewer_bits_are_farther(workspace, cache):
    _, fp_last = fp_latents(workspace, cache)
    seen, found = probe(workspace, cache), {}
    for bits in ("w8a8", "w4a8", "w4a4"):
        packed, draw, key = packed_at(workspace, cache, bits)
        drawn, last = last_latents(workspace, cache, key, draw)
        assert drawn.images.shape[0] == len(last) == 4
        found[bits], curve = closeness(packed, seen, fp_last, last)
        np.testing.assert_allclose(curve[f"curve:{SQNR}"].mean(0), found[bits][SQNR])
    for metric, sign in ((SQNR, 1), (LATENT, -1)):
        means = [sign * found[bits][metric].mean() for bits in ("w8a8", "w4a8", "w4a4")]
        assert means == sorted(means, reverse=True)
        assert means[0] > means[-1]


def test_last_latents_are_the_image_of_a_pixel_model(workspace, cache):
    drawn, last = fp_latents(workspace, cache)
    image = ((last / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(image, drawn.images)


def test_images_without_their_latents_are_drawn_again(workspace, tmp_path):
    cache = StageCache(tmp_path)
    fp_images(workspace, cache)  # as a run that was stopped here leaves it
    drawn, last = fp_latents(workspace, cache)
    assert len(last) == len(drawn.images)
    image = ((last / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(image, drawn.images)


def test_reasons(workspace, cache):
    packed, *_ = packed_at(workspace, cache, "w8a8")
    seen = probe(workspace, cache)
    broken = replace(seen, predictions=seen.predictions * float("nan"))
    found, curve = closeness(packed, broken, None, None)
    assert "call 0 are not finite" in found[SQNR]
    assert "does not say what its steps return" in found[LATENT]
    assert curve == {}


@pytest.mark.parametrize(("prompts", "want"), [((), None), (("a", "b", "a"), (0, 1, 0, 0, 1))])
def test_prompts_that_repeat_are_one_unit(workspace, prompts, want):
    assert prompt_groups(replace(workspace.info, prompts=prompts), 5) == want
