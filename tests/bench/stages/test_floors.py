"""Floors on a tiny pipeline: full precision against itself, real images against real images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from quantarena.bench.cache import StageCache
from quantarena.bench.metrics.names import KID, LATENT, LPIPS, PSNR, QUALITY, RECALL, SQNR
from quantarena.bench.metrics.quality.features import Features, halves
from quantarena.bench.metrics.quality.frechet import fit_pca
from quantarena.bench.metrics.quality.kid import self_similarity
from quantarena.bench.metrics.quality.precision_recall import radii
from quantarena.bench.schema import Measurement
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages import floors
from quantarena.bench.stages.fp_images import fp_images
from quantarena.bench.stages.workspace import open_workspace

BUDGET = Budget(images=3, batch=2, steps=2, calibration_images=2, calibration_samples=4)


@pytest.fixture(scope="module")
def workspace(pixel_folder):
    return open_workspace(Cell(str(pixel_folder), "rtn", "w4a8", budget=BUDGET))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return StageCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def real():
    tensor = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 40))).float()
    return Features(
        tensor,
        "cloud",
        "a" * 64,
        "noise",
        "b" * 64,
        16,
        self_similarity(tensor),
        fit_pca(tensor),
        radii(tensor),
    )


def test_rounding_is_small_and_gives_the_network_back(workspace, cache):
    before = workspace.loaded.denoiser
    found = floors.rounded(workspace, cache)
    assert workspace.loaded.denoiser is before
    assert next(before.parameters()).dtype == torch.float32
    assert len(found[PSNR]) == len(found[LATENT]) == len(found[SQNR]) == 3
    assert (found[PSNR] > 25).all()
    assert (found[SQNR] > 25).all()
    assert (found[SQNR] < 80).all()  # it is another network
    again = floors.rounded(workspace, cache)
    assert all((again[name] == values).all() for name, values in found.items())


def test_another_seed_is_another_image(workspace, cache):
    own, other = floors.rounded(workspace, cache), floors.other_seed(workspace, cache)
    assert other[LPIPS].min() > own[LPIPS].max()
    assert other[PSNR].max() < own[PSNR].min()
    # the images it compares with are those that the next seed's cells draw
    next_seed = fp_images(replace(workspace, seed=1), cache).images
    from quantarena.bench.metrics.fidelity.psnr_ssim import psnr

    want = psnr(fp_images(workspace, cache).images, next_seed)
    np.testing.assert_allclose(other[PSNR], want, atol=0.5)


def test_halves_are_apart_and_seeded(real):
    test, other = halves(real, 128, seed=3)
    assert (len(test), len(other.tensor)) == (100, 100)
    rows = {tuple(row.tolist()) for row in torch.cat([test, other.tensor])}
    assert len(rows) == 200
    assert torch.equal(test, halves(real, 128, seed=3)[0])
    assert not torch.equal(test, halves(real, 128, seed=4)[0])
    assert len(halves(real, 20)[0]) == 20


def test_measurements_are_named_and_on_a_board_of_their_own(real):
    found = {floors.ROUNDED: {LPIPS: np.array([0.01, 0.03])}}
    floor = floors.measurements(found, real, 128)
    names = {m.name: m for m in floor}
    assert set(names) == {f"floor/bf16/{LPIPS}", *(f"floor/halves/{name}" for name in QUALITY)}
    assert {m.board for m in floor} == {"floor"}
    assert names[f"floor/bf16/{LPIPS}"].value == pytest.approx(0.02)
    kid = names[f"floor/halves/{KID}"]
    assert kid.low < 0 < kid.high  # one distribution
    assert names[f"floor/halves/{RECALL}"].value > 0.5
    assert floors.measurements(found, None, 128)[0].name == f"floor/bf16/{LPIPS}"


@pytest.mark.parametrize(
    ("value", "low", "is_tied"), [(0.02, 0.01, True), (0.05, 0.019, True), (0.05, 0.03, False)]
)
def test_tied_where_the_interval_reaches_into_the_rounding(value, low, is_tied):
    scored = (Measurement(PSNR, 30.0), Measurement(LPIPS, value, low, value + 0.01))
    line = floors.tied(scored, {LPIPS: np.array([0.01, 0.03])})
    assert (line is not None) == is_tied
    if line:
        assert line.startswith("tied with full precision")
        assert "0.02" in line


def test_nothing_is_tied_without_its_number():
    assert floors.tied((Measurement(PSNR, 30.0),), {LPIPS: np.array([0.01])}) is None
    assert floors.tied((Measurement(LPIPS, 0.0),), {}) is None
