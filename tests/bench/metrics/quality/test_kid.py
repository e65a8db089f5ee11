import numpy as np
import pytest
import torch

from quantarena.bench.metrics.bootstrap import interval
from quantarena.bench.metrics.quality import kid as module
from quantarena.bench.metrics.quality.effnet import effnet_lite0
from quantarena.bench.metrics.quality.extractor import extract
from quantarena.bench.metrics.quality.kid import SCALE, kid, self_similarity

DIM = 16


def cloud(n, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.normal(size=(n, DIM)) + shift).astype(np.float32))


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_is_torchmetrics_at_equal_n(photos, real):
    """Through torchmetrics' own class, with our network as its feature module."""
    from torchmetrics.image.kid import KernelInceptionDistance

    network = effnet_lite0()
    theirs = KernelInceptionDistance(feature=network, subsets=1, subset_size=32)
    theirs.update(real[:32], real=True)
    theirs.update(photos[:32], real=False)
    want = float(theirs.compute()[0]) * SCALE
    ours = kid(extract(photos[:32], network), extract(real[:32], network), resamples=0)
    assert ours.value == pytest.approx(want, rel=1e-4)


def test_is_clean_fid_at_equal_n():
    cleanfid = pytest.importorskip("cleanfid.fid")
    test, reference = cloud(80, 0, 0.3), cloud(80, 1)
    want = cleanfid.kernel_distance(reference.double().numpy(), test.double().numpy(), 1, 80)
    assert kid(test, reference, resamples=0).value == pytest.approx(want * SCALE, rel=1e-9)


def test_is_what_random_subsets_wander_around():
    """At unequal N the usual tools draw subsets; their mean tends to our value."""
    cleanfid = pytest.importorskip("cleanfid.fid")
    test, reference = cloud(60, 0, 0.3), cloud(200, 1)
    np.random.seed(0)
    runs = [
        cleanfid.kernel_distance(reference.double().numpy(), test.double().numpy(), 100, 40)
        for _ in range(20)
    ]
    error = np.std(runs) / np.sqrt(20) * SCALE
    ours = kid(test, reference, resamples=0).value
    assert abs(np.mean(runs) * SCALE - ours) < 4 * error


def test_by_hand():
    x, y = cloud(5, 0).double().numpy(), cloud(7, 1).double().numpy()

    def k(a, b):
        return (a @ b / DIM + 1) ** 3

    within = np.mean([k(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    constant = np.mean([k(y[i], y[j]) for i in range(7) for j in range(7) if i != j])
    across = np.mean([k(a, b) for a in x for b in y])
    want = SCALE * (within + constant - 2 * across)
    assert kid(cloud(5, 0), cloud(7, 1), resamples=0).value == pytest.approx(want)


def test_strips_give_the_whole(monkeypatch):
    features = cloud(50, 0)
    whole, value = self_similarity(features), kid(cloud(9, 1), features).value
    monkeypatch.setattr(module, "_ROWS", 7)
    assert self_similarity(features) == pytest.approx(whole)
    assert kid(cloud(9, 1), features).value == pytest.approx(value)


def test_unbiased_around_zero_for_one_distribution():
    values = [kid(cloud(40, s), cloud(60, 1000 + s), resamples=0).value for s in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)
    assert min(values) < 0 < max(values)  # unbiased: it may be negative


def test_a_known_similarity_changes_nothing():
    test, reference = cloud(20, 0), cloud(30, 1)
    known = self_similarity(reference)
    assert kid(test, reference, reference_similarity=known).value == kid(test, reference).value


def test_interval_covers_the_truth():
    """The bootstrap is over test images: the truth is the distance to this very reference."""
    reference, huge = cloud(300, 0), cloud(3000, 1, 0.25)
    truth = kid(huge, reference, resamples=0).value
    constant = self_similarity(reference)
    hits = 0
    for seed in range(100):
        found = kid(cloud(64, 5000 + seed, 0.25), reference, reference_similarity=constant)
        low, high = interval(found.replicates)
        hits += low <= truth <= high
    assert 0.87 <= hits / 100 <= 0.99


def test_replicates_are_centred_on_the_value():
    found = kid(cloud(64, 0, 0.2), cloud(300, 1))
    assert abs(found.replicates.mean() - found.value) < 0.15 * found.replicates.std()


def test_replicates_leave_out_pairs_with_oneself():
    """Were a copy paired with its original, every replicate would exceed the value."""
    x, y = cloud(12, 0), cloud(15, 1)
    counts = np.zeros(12)
    counts[[0, 1, 2]] = 4
    expected = kid(x[:3], y, resamples=0).value
    original = module.resample_counts
    module.resample_counts = lambda *_: counts[None]
    try:
        found = kid(x, y, resamples=1).replicates[0]
    finally:
        module.resample_counts = original
    assert found == pytest.approx(expected)


def test_equal_images_have_a_value():
    assert kid(torch.ones(20, DIM), cloud(30, 0)).value > 0


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="at least two"):
        kid(cloud(1, 0), cloud(10, 1))


@pytest.mark.parametrize("kind", ["noisy", "blurred", "posterised"])
def test_grows_with_damage(real_features, damaged_features, kind):
    values = [kid(f, real_features, resamples=0).value for f in damaged_features[kind]]
    assert values == sorted(values)
    assert values[-1] > 0


def test_prompts_as_the_unit_widen_the_interval():
    """Four images that hardly differ tell as much as one."""
    base = cloud(32, 0, 0.2)
    test = base.repeat(4, 1) + 0.01 * cloud(128, 3)
    groups = tuple(range(32)) * 4
    by_image = np.std(kid(test, cloud(300, 1)).replicates)
    found = kid(test, cloud(300, 1), groups=groups)
    assert np.std(found.replicates) > 1.6 * by_image
    assert found.value == kid(test, cloud(300, 1), resamples=0).value
