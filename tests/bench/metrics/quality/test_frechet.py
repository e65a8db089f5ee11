import numpy as np
import pytest
import torch

from quantarena.bench.metrics.quality.frechet import AXES, distance, fit_pca, frechet


def cloud(n, seed, dim=48, shift=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    widths = np.linspace(3, 0.2, dim)
    return torch.from_numpy(((rng.normal(size=(n, dim)) + shift) * widths * scale).astype("f4"))


def test_closed_form_of_diagonal_gaussians():
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    a, b = torch.tensor([4.0, 1.0, 9.0]).double(), torch.tensor([1.0, 4.0, 9.0]).double()
    want = float(mean.pow(2).sum() + (a.sqrt() - b.sqrt()).pow(2).sum())
    assert float(distance(mean, torch.diag(a), b)) == pytest.approx(want)
    assert float(distance(mean * 0, torch.diag(b), b)) == pytest.approx(0)


def test_scaling_and_shifting_a_set_gives_the_closed_form():
    reference = cloud(500, 0)
    pca = fit_pca(reference)
    doubled = (reference - pca.mean) * 2 + pca.mean
    assert frechet(doubled.float(), pca, resamples=0).value == pytest.approx(
        float(pca.variances.sum()), rel=1e-4
    )
    moved = reference + pca.axes[0] * 3
    assert frechet(moved.float(), pca, resamples=0).value == pytest.approx(9, rel=1e-4)


@pytest.mark.filterwarnings("ignore:The `disp` argument")
def test_is_clean_fid_and_the_matrix_square_root():
    scipy_linalg = pytest.importorskip("scipy.linalg")
    reference, test = cloud(300, 0), cloud(200, 1, shift=0.3, scale=1.2)
    pca = fit_pca(reference)
    ref = ((reference.double() - pca.mean) @ pca.axes.T).numpy()
    gen = ((test.double() - pca.mean) @ pca.axes.T).numpy()
    stats = gen.mean(0), np.cov(gen.T), ref.mean(0), np.cov(ref.T)
    ours = frechet(test, pca, resamples=0).value
    root = scipy_linalg.sqrtm(stats[1] @ stats[3])
    by_hand = ((stats[0] - stats[2]) ** 2).sum() + np.trace(stats[1] + stats[3] - 2 * root.real)
    assert ours == pytest.approx(by_hand, rel=1e-6)
    cleanfid = pytest.importorskip("cleanfid.fid")
    try:
        theirs = cleanfid.frechet_distance(*stats)
    except (TypeError, ValueError) as error:
        pytest.skip(f"clean-fid does not run with this scipy: {error}")
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_reference_itself_is_at_zero():
    reference = cloud(200, 0)
    assert frechet(reference, fit_pca(reference), resamples=0).value == pytest.approx(0, abs=1e-6)


def test_axes_are_the_widest_and_orthonormal():
    pca = fit_pca(cloud(400, 0))
    assert pca.axes.shape == (AXES, 48)
    torch.testing.assert_close(pca.axes @ pca.axes.T, torch.eye(AXES, dtype=torch.float64))
    assert torch.all(pca.variances[:-1] >= pca.variances[1:])
    widest = torch.from_numpy(np.cov(cloud(400, 0).double().numpy().T))
    torch.testing.assert_close(pca.variances, torch.linalg.eigvalsh(widest).flip(0)[:AXES])
    parts = pca.axes.gather(1, pca.axes.abs().argmax(1, keepdim=True))
    assert torch.all(parts > 0)


@pytest.mark.parametrize(
    "features", [torch.ones(100, 48), torch.eye(48)[:20], cloud(100, 0)[:, :8], cloud(32, 0)]
)
def test_a_reference_without_enough_directions_has_no_axes(features):
    assert fit_pca(features) is None


def test_a_reference_that_repeats_few_images_has_no_axes():
    assert fit_pca(cloud(10, 0).repeat(20, 1)) is None


def test_equal_images_have_the_closed_form():
    pca = fit_pca(cloud(300, 0))
    same = cloud(1, 5).repeat(70, 1)
    offset = (same[0].double() - pca.mean) @ pca.axes.T
    want = float(offset.pow(2).sum() + pca.variances.sum())
    found = frechet(same, pca)
    assert found.value == pytest.approx(want)
    np.testing.assert_allclose(found.replicates, want, rtol=1e-9)


def test_replicates_are_the_statistic_on_resamples(monkeypatch):
    from quantarena.bench.metrics.quality import frechet as module

    test, pca = cloud(64, 1), fit_pca(cloud(300, 0))
    drawn = np.random.default_rng(0).integers(0, 64, 64)
    counts = np.bincount(drawn, minlength=64).astype(float)
    monkeypatch.setattr(module, "resample_counts", lambda *_: counts[None])
    found = module.frechet(test, pca, resamples=1).replicates[0]
    assert found == pytest.approx(frechet(test[drawn], pca, resamples=0).value, rel=1e-9)


def test_bias_falls_with_n():
    pca = fit_pca(cloud(4000, 0))
    few, many = (
        np.mean([frechet(cloud(n, 10 + s), pca, resamples=0).value for s in range(20)])
        for n in (64, 512)
    )
    assert few > 4 * many > 0


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="at least two"):
        frechet(cloud(1, 0), fit_pca(cloud(100, 1)))


@pytest.mark.parametrize("kind", ["noisy", "blurred", "posterised"])
def test_grows_with_damage(real_features, damaged_features, kind):
    pca = fit_pca(real_features)
    values = [frechet(f, pca, resamples=0).value for f in damaged_features[kind]]
    assert values == sorted(values)
