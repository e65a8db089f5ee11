"""A network that lost its weights is told from one that draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quantarena.bench.metrics.wrecked import damage, roughness

ZOO = Path(__file__).parents[3] / "bench/workloads/zoo"


def pictures(name="cifar10-uncond", size=32):
    sheet = np.asarray(Image.open(ZOO / name / "samples.png").convert("RGB")).copy()
    tiles = torch.from_numpy(sheet).permute(2, 0, 1).unfold(1, size, size).unfold(2, size, size)
    return tiles.flatten(1, 2).transpose(0, 1)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def as_images(x):
    return (128 + 64 * x).clamp(0, 255).to(torch.uint8)


def test_roughness_by_hand():
    # neighbours across differ by 2, neighbours below by 0; the variance is 1
    checks = torch.tensor([[1.0, -1.0], [1.0, -1.0]])[None, None]
    assert roughness(checks).tolist() == [1.0]
    assert roughness(torch.ones(1, 3, 4, 4)).tolist() == [0.0]
    assert float(roughness(noise(4, 3, 64, 64)).mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ["cifar10-uncond", "emoji-t2i", "emoji-dit"])
def test_pictures_are_no_damage(name):
    assert damage(pictures(name)) is None
    white = as_images(torch.ones(8, 3, 32, 32) * 9)
    white[:, :, 8:24, 8:24] = torch.arange(8)[:, None, None, None].to(torch.uint8) * 20
    assert damage(white) is None


@pytest.mark.parametrize(
    ("images", "what"),
    [
        (as_images(noise(8, 3, 32, 32)), "its images are noise"),
        (as_images(0.02 * noise(8, 3, 32, 32)), "its images are of one colour"),
        (torch.zeros(8, 3, 32, 32, dtype=torch.uint8), "its images are of one colour"),
        (
            as_images(100 * noise(8, 3, 32, 32)),
            "nearly all pixels of its images are black or white",
        ),
        (pictures()[40:41].expand(8, -1, -1, -1), "its images are all the same"),
    ],
)
def test_wrecks(images, what):
    assert damage(images) == what


def test_latents_tell_what_smooth_images_hide():
    smooth = noise(8, 4, 16, 16).cumsum(-1).cumsum(-2)
    assert damage(pictures()[:8], smooth) is None
    assert damage(pictures()[:8], noise(8, 4, 16, 16)) == "its latents are noise"
    assert damage(pictures()[:8], smooth / 0) == "its latents are not finite"
