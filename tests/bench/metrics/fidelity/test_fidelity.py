import numpy as np
import pytest
import torch

from quantarena.bench.metrics.fidelity.fidelity import fidelity, summarise
from quantarena.bench.metrics.fidelity.psnr_ssim import PSNR_CAP, psnr, ssim
from quantarena.bench.metrics.images import BadImages
from quantarena.bench.metrics.names import IMAGE_PAIRS, LPIPS, PSNR, SSIM


def test_equal_images_are_perfect(photos):
    found = fidelity(photos[:10], photos[:10])
    assert np.all(found[PSNR] == PSNR_CAP)
    np.testing.assert_allclose(found[SSIM], 1, atol=1e-6)
    assert np.all(found[LPIPS] == 0)
    for m in summarise(found):
        assert m.low == pytest.approx(m.value)
        assert m.high == pytest.approx(m.value)


def test_psnr_is_mean_of_db_by_hand(photos, noisy):
    other = noisy(photos, 12)
    error = (photos.double() - other.double()).pow(2).mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(psnr(photos, other), 10 * np.log10(255**2 / error), rtol=1e-6)
    pooled = 10 * np.log10(255**2 / error.mean())
    assert summarise({PSNR: psnr(photos, other)})[0].value > pooled  # Jensen: not the same number


def test_psnr_of_one_level_in_one_value_stays_below_the_cap(photos):
    other = photos[:1].clone()
    other[0, 0, 0, 0] ^= 1
    assert psnr(photos[:1], other)[0] == pytest.approx(89.02, abs=0.01)


def test_psnr_is_skimage_s(photos, noisy):
    skimage = pytest.importorskip("skimage.metrics")
    other = noisy(photos, 25)
    for index, value in enumerate(psnr(photos[:5], other[:5])):
        pair = photos[index].numpy(), other[index].numpy()
        assert value == pytest.approx(skimage.peak_signal_noise_ratio(*pair, data_range=255))


def test_ssim_is_skimage_s_away_from_the_border(photos, noisy):
    skimage = pytest.importorskip("skimage.metrics")
    from torchmetrics.functional.image import structural_similarity_index_measure

    first, second = photos[:4], noisy(photos, 20)[:4]
    _, ours = structural_similarity_index_measure(
        second / 255, first / 255, data_range=1.0, reduction="none", return_full_image=True
    )
    for index in range(4):
        _, theirs = skimage.structural_similarity(
            first[index].numpy() / 255,
            second[index].numpy() / 255,
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        inner = (slice(None), slice(5, -5), slice(5, -5))
        np.testing.assert_allclose(ours[index].numpy()[inner], theirs[inner], atol=1e-3)
        # Our number is the mean of exactly this map, border included.
        assert ssim(first, second)[index] == pytest.approx(float(ours[index].mean()), abs=1e-6)


@pytest.mark.parametrize("kind", ["noisy", "blurred", "posterised"])
def test_falls_with_damage(photos, request, kind):
    strengths = {"noisy": (2, 8, 30), "blurred": (3, 5, 7), "posterised": (6, 4, 2)}[kind]
    damage = request.getfixturevalue(kind)
    for metric in (psnr, ssim):
        means = [metric(photos, damage(photos, s)).mean() for s in strengths]
        assert means[0] > means[1] > means[2]


def test_constant_images_have_every_fidelity_metric():
    grey = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
    found = fidelity(grey, grey + 10)
    assert found.keys() == set(IMAGE_PAIRS)
    assert all(np.isfinite(values).all() for values in found.values())
    assert found[PSNR][0] == pytest.approx(20 * np.log10(25.5))


def test_images_below_the_window_have_no_ssim():
    small = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="window"):
        ssim(small, small)
    found = {m.name: m for m in summarise(fidelity(small, small))}
    assert found[SSIM].value is None
    assert "window of 11 px" in found[SSIM].reason
    assert found[PSNR].value == PSNR_CAP
    assert found[PSNR].reason is None


def test_values_do_not_depend_on_the_chunks(photos, noisy, monkeypatch):
    from quantarena.bench.metrics.fidelity import psnr_ssim as module

    other = noisy(photos, 9)
    whole = {f: f(photos, other) for f in (psnr, ssim)}
    monkeypatch.setattr(module, "chunks", lambda images: (slice(i, i + 1) for i in range(80)))
    for function, values in whole.items():
        np.testing.assert_allclose(function(photos, other), values, rtol=1e-5)


def test_measurements_carry_their_origin(photos, noisy):
    first, second, third, *beside = summarise(fidelity(photos[:20], noisy(photos[:20], 9)))
    assert all(m.value is None and "images alone" in m.reason for m in beside)
    assert [m.name for m in (first, second, third)] == ["psnr", "ssim", "lpips/alex-v0.1"]
    assert first.unit == "dB"
    assert first.higher_is_better
    assert second.higher_is_better
    assert not third.higher_is_better
    assert third.extractor_sha256
    assert first.extractor_sha256 is None
    for m in (first, second, third):
        assert m.board == "fidelity"
        assert m.reference == "fp"
        assert m.n == 20
        assert m.low < m.value < m.high
        assert m.impl


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_pairs_are_refused(photos, metric):
    with pytest.raises(BadImages, match="do not pair"):
        metric(photos[:3], photos[:3, :, :32, :32])
    broken = photos[:3].float()
    broken[1, 0, 0, :2] = float("nan")
    with pytest.raises(ValueError, match="test images hold 2 NaN values, first in image 1"):
        metric(photos[:3], broken)
