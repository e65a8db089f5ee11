import numpy as np
import pytest
import torch

from quantarena.bench.metrics.bootstrap import recentred_interval
from quantarena.bench.metrics.quality import precision_recall as module
from quantarena.bench.metrics.quality.precision_recall import precision, radii, recall


def cloud(n, seed, shift=0.0, dim=4):
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.normal(size=(n, dim)) + shift).astype(np.float32))


def brute_force(points, centres, k):
    """Share of points that lie in the ball of some centre, by the definition, in plain loops."""
    points, centres = points.double().numpy(), centres.double().numpy()
    hits = 0
    for point in points:
        for i, centre in enumerate(centres):
            others = sorted(
                np.linalg.norm(centre - other) for j, other in enumerate(centres) if j != i
            )
            if np.linalg.norm(point - centre) <= others[k - 1]:
                hits += 1
                break
    return hits / len(points)


def both(test, reference, **options):
    """Precision and recall without their replicates."""
    return (
        precision(test, reference, radii(reference), **options).value,
        recall(test, reference, **options).value,
    )


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_is_the_definition(shift):
    test, reference = cloud(30, 0, shift), cloud(45, 1)
    found = both(test, reference)
    assert found == (brute_force(test, reference, 3), brute_force(reference, test, 3))
    if shift:
        assert 0 < found[0] < 1


def test_a_set_against_itself_is_perfect():
    assert both(cloud(40, 0), cloud(40, 0)) == (1, 1)


def test_sets_apart_share_nothing():
    assert both(cloud(40, 0, 50.0), cloud(40, 1)) == (0, 0)


def test_half_the_variety_is_precise_and_forgets():
    real = torch.cat([cloud(60, 0), cloud(60, 1, 40.0)])
    p, r = both(cloud(60, 2), real)
    assert p > 0.6
    assert 0.3 < r <= 0.5


def test_noise_outside_is_imprecise():
    real = cloud(60, 0)
    p, r = both(torch.cat([cloud(60, 2), cloud(60, 3, 40.0)]), real)
    assert 0.3 < p <= 0.5
    assert r > 0.6


def test_a_collapsed_sampler_has_no_recall():
    _, r = both(cloud(1, 5).repeat(40, 1), cloud(60, 0))
    assert r == 0


def test_strips_give_the_whole(monkeypatch):
    test, reference = cloud(30, 0, 0.5), cloud(45, 1)
    whole = both(test, reference)
    replicates = recall(test, reference).replicates
    monkeypatch.setattr(module, "_ROWS", 7)
    assert both(test, reference) == whole
    np.testing.assert_allclose(recall(test, reference).replicates, replicates)


def test_too_few_images():
    with pytest.raises(ValueError, match="need more than 3 images, there are 3"):
        radii(cloud(3, 0))


def test_precision_s_interval_covers_the_share():
    reference = cloud(200, 0)
    sizes = radii(reference)
    truth = precision(cloud(4000, 1, 0.9), reference, sizes, resamples=1).value
    hits = 0
    for seed in range(100):
        found = precision(cloud(80, 10 + seed, 0.9), reference, sizes, resamples=400)
        low, high = np.quantile(found.replicates, [0.025, 0.975])
        hits += low <= truth <= high
    assert hits / 100 >= 0.88


def test_recall_s_spread_is_about_that_of_other_draws():
    reference = cloud(300, 0)
    others = [recall(cloud(80, 10 + s), reference, resamples=1).value for s in range(60)]
    found = recall(cloud(80, 5), reference)
    assert 0.5 < found.replicates.std() / np.std(others) < 2
    low, high = recentred_interval(found.value, found.replicates)
    assert low < found.value < high
    assert found.replicates.mean() < found.value  # which is why it is put back in place


def test_prompts_as_the_unit_widen_the_interval():
    base, reference = cloud(40, 0, 0.7), cloud(100, 1)
    test, groups = base.repeat(2, 1), tuple(range(40)) * 2
    sizes = radii(reference)
    by_image = precision(test, reference, sizes).replicates.std()
    assert precision(test, reference, sizes, groups=groups).replicates.std() > 1.2 * by_image


@pytest.mark.parametrize("kind", ["noisy", "blurred", "posterised"])
def test_precision_falls_with_damage(real_features, damaged_features, kind):
    sizes = radii(real_features)
    values = [precision(f, real_features, sizes, resamples=1).value for f in damaged_features[kind]]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]
