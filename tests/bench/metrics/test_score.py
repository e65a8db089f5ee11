import json

import numpy as np
import pytest
import torch

from quantarena.bench.metrics.fidelity.psnr_ssim import PSNR_CAP
from quantarena.bench.metrics.image_folder import save_folder
from quantarena.bench.metrics.images import BadImages
from quantarena.bench.metrics.names import (
    FRECHET,
    IMAGE_PAIRS,
    KID,
    LPIPS,
    METRICS,
    PRECISION,
    PSNR,
    QUALITY,
    RECALL,
    SSIM,
    VIDEO,
)
from quantarena.bench.metrics.quality.effnet import effnet_lite0
from quantarena.bench.metrics.quality.features import Features, features_of
from quantarena.bench.metrics.quality.features_file import reference_features
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.stages.score import ScoreInputs, score


@pytest.fixture(scope="module")
def reference(real) -> Features:
    return features_of(real, "crops", effnet_lite0())


@pytest.fixture(scope="module")
def fp_scores(photos, reference):
    return score(ScoreInputs(photos, photos, reference))


def by_name(scores):
    return {m.name: m for m in scores.measurements}


def test_full_precision_row_is_perfect_and_has_quality(fp_scores):
    found = by_name(fp_scores)
    assert tuple(found) == tuple(name for name in METRICS if name not in VIDEO)
    assert found[PSNR].value == found[PSNR].low == found[PSNR].high == PSNR_CAP
    assert found[SSIM].value == pytest.approx(1)
    assert found[LPIPS].value == 0
    for name in (KID, FRECHET, PRECISION, RECALL):
        assert found[name].low < found[name].value < found[name].high
        assert found[name].n == 80
        assert found[name].extractor_sha256 == effnet_lite0().sha256
        assert found[name].reference.startswith("crops sha256:")
    assert fp_scores.warnings == ()


def test_every_number_has_its_interval_and_origin(photos, noisy, reference, fp_scores):
    scores = score(ScoreInputs(photos, noisy(photos, 15), reference))
    for m in scores.measurements:
        if m.name not in (*IMAGE_PAIRS, *QUALITY):
            assert m.value is None
            assert m.reason
            continue
        info = METRICS[m.name]
        assert m.low <= m.value <= m.high
        assert (m.unit, m.higher_is_better, m.board) == (
            info.unit,
            info.higher_is_better,
            info.board,
        )
        assert m.impl
        assert m.reason is None
    assert scores.per_image.keys() == set(IMAGE_PAIRS)
    for name, values in scores.per_image.items():
        assert values.shape == (80,)
        assert values.mean() == pytest.approx(by_name(scores)[name].value)
    # Worse than full precision, and the paired replicates say so beyond doubt.
    for name in (KID, FRECHET):
        difference = scores.replicates[name] - fp_scores.replicates[name]
        assert np.quantile(difference, 0.025) > 0


def test_same_seed_same_numbers(photos, noisy, reference):
    args = photos[:20], noisy(photos[:20], 5), reference
    first, again, other = (score(ScoreInputs(*args, seed=s)) for s in (0, 0, 1))
    assert first.measurements == again.measurements
    assert first.measurements != other.measurements
    assert [m.value for m in first.measurements] == [m.value for m in other.measurements]


def test_measurements_fit_a_row(fp_scores):
    cell = Cell("w", "fp", "fp")
    row = Row(cell, Status.OK, measurements=fp_scores.measurements)
    assert Row.from_dict(json.loads(json.dumps(row.to_dict()))) == row


LARGE = (FRECHET, PRECISION, RECALL)


@pytest.mark.parametrize(("n", "missing"), [(8, (KID, *LARGE)), (16, LARGE), (64, ())])
def test_too_few_images_leave_a_reason(photos, reference, n, missing):
    found = by_name(score(ScoreInputs(photos[:n], photos[:n], reference)))
    for name in (KID, *LARGE):
        if name in missing:
            assert found[name].value is None
            want = f"needs at least {METRICS[name].needs} generated images, there are {n}"
            assert found[name].reason == want
        else:
            assert found[name].value is not None


def test_small_or_dull_reference_leaves_a_reason(photos, real):
    few = by_name(score(ScoreInputs(photos[:64], photos[:64], features_of(real[:10], "ten"))))
    assert few[KID].reason == "needs at least 16 reference images, there are 10"
    dull = by_name(
        score(ScoreInputs(photos[:64], photos[:64], features_of(real[:1].repeat(70, 1, 1, 1), "d")))
    )
    assert dull[KID].value > 0
    assert "fewer than 32 directions" in dull[FRECHET].reason


def test_a_folder_of_three_pictures_leaves_a_reason(photos, real, tmp_path):
    save_folder(real[:3], tmp_path / "three")
    found = by_name(
        score(ScoreInputs(photos[:64], photos[:64], reference_features(tmp_path / "three")))
    )
    for name in (KID, *LARGE):
        assert found[name].value is None
        assert "reference images, there are 3" in found[name].reason


def test_no_reference_leaves_a_reason(photos):
    found = by_name(score(ScoreInputs(photos[:4], photos[:4], None)))
    assert found[KID].reason == found[FRECHET].reason == "the workload has no reference images"
    assert found[PSNR].value is not None


def test_not_square_images_have_fidelity_only(photos, reference):
    wide = photos[:20, :, :32]
    found = by_name(score(ScoreInputs(wide, wide, reference)))
    assert found[LPIPS].value == 0
    assert "64x32" in found[KID].reason


def test_one_pair_has_values_without_intervals(photos):
    found = by_name(score(ScoreInputs(photos[:1], photos[1:2], None)))
    assert found[PSNR].value > 0
    assert found[PSNR].low is None


def test_constant_images_are_scored_and_noted(photos, reference):
    grey = torch.full_like(photos, 128)
    scores = score(ScoreInputs(photos, grey, reference))
    values = [m.value for m in scores.measurements if m.name in (*IMAGE_PAIRS, *QUALITY)]
    assert np.isfinite(np.array(values, float)).all()
    assert by_name(scores)[KID].value > 0
    assert scores.warnings == ("all test images are equal: the sampler collapsed",)


def test_another_size_than_the_reference_is_noted(photos, reference):
    small = photos[:16, :, ::2, ::2]
    assert (
        "reference images are 64 px, generated ones 32 px"
        in score(ScoreInputs(small, small, reference)).warnings[0]
    )


def test_nan_is_refused_by_name(photos, reference):
    broken = photos.float() / 255
    broken[3, 1, 5, 5] = float("nan")
    with pytest.raises(ValueError, match="test images hold 1 NaN values, first in image 3"):
        score(ScoreInputs(photos, broken, reference))


def test_unpaired_images_are_refused(photos, reference):
    with pytest.raises(BadImages, match="do not pair"):
        score(ScoreInputs(photos, photos[:5], reference))


def test_a_reference_of_another_network_is_refused(photos, reference):
    from dataclasses import replace

    with pytest.raises(ValueError, match="not of this network"):
        score(ScoreInputs(photos[:4], photos[:4], replace(reference, extractor="inception")))


def test_progress_names_its_stages(photos, reference):
    seen = []
    score(
        ScoreInputs(photos[:20], photos[:20], reference), progress=lambda *step: seen.append(step)
    )
    assert seen[-1] == ("features", 20, 20)
    assert ("lpips", 20, 20) in seen
