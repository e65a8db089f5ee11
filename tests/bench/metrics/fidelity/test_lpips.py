import json
import shutil
import warnings

import numpy as np
import pytest
import torch

from quantarena.bench.metrics.fidelity.lpips import (
    WEIGHTS,
    LpipsAlex,
    enlarge,
    lpips,
    lpips_alex,
    read_weights,
    weights_sha256,
)
from quantarena.bench.metrics.images import BadImages
from quantarena.bench.metrics.weights import ASSETS, BrokenWeights, sha256_of


@pytest.fixture(scope="module")
def official():
    """The lpips package's own network and heads, with our filters in its random trunk."""
    package = pytest.importorskip("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = package.LPIPS(net="alex", pretrained=True, pnet_rand=True, verbose=False)
    tensors = read_weights()
    layers = [m for m in net.net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) == 5
    for index, layer in enumerate(layers, 1):
        layer.weight.data.copy_(tensors[f"conv{index}.weight"])
        layer.bias.data.copy_(tensors[f"conv{index}.bias"])
    return net.eval()


def test_equal_images_are_at_distance_zero(photos):
    assert np.all(lpips(photos[:20], photos[:20]) == 0)


def test_heads_are_the_package_s_own(official):
    tensors = read_weights()
    for index, head in enumerate(official.lins, 1):
        theirs = head.model[-1].weight.detach().flatten()
        assert (theirs - tensors[f"head{index}"]).abs().max() == 0


@pytest.mark.parametrize("levels", [1, 10, 60])
def test_forward_is_the_package_s_own(official, photos, noisy, levels):
    first, second = photos[:8], noisy(photos[:8], levels)
    with torch.no_grad():
        theirs = official(first / 127.5 - 1, second / 127.5 - 1).flatten()
    np.testing.assert_allclose(lpips(first, second), theirs.numpy(), rtol=1e-4, atol=1e-7)


def test_forward_at_a_larger_size_is_the_package_s_own(official):
    from skimage import data

    pictures = [data.chelsea()[:256, :256], data.coffee()[:256, :256]]
    first, second = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None] for p in pictures)
    with torch.no_grad():
        theirs = float(official(first / 127.5 - 1, second / 127.5 - 1))
    assert lpips(first, second)[0] == pytest.approx(theirs, rel=1e-5)
    assert 0.3 < theirs < 1.0  # a cat is no cup


def test_symmetric_and_independent_of_the_batch(photos, noisy):
    other = noisy(photos, 15)
    whole = lpips(photos, other)
    np.testing.assert_allclose(lpips(other, photos), whole, rtol=1e-5)
    np.testing.assert_allclose(lpips(photos[5:6], other[5:6])[0], whole[5], rtol=1e-5)


@pytest.mark.parametrize("kind", ["noisy", "blurred", "posterised"])
def test_grows_with_damage(photos, request, kind):
    strengths = {"noisy": (3, 10, 30), "blurred": (3, 5, 7), "posterised": (5, 3, 2)}[kind]
    damage = request.getfixturevalue(kind)
    means = [lpips(photos[:24], damage(photos[:24], s)).mean() for s in strengths]
    assert 0 < means[0] < means[1] < means[2]


def test_small_images_are_enlarged_to_64(photos, noisy):
    small, other = photos[:4, :, ::2, ::2], noisy(photos, 20)[:4, :, ::2, ::2]
    assert enlarge(small.float()).shape == (4, 3, 64, 64)
    assert enlarge(torch.zeros(1, 3, 32, 48)).shape == (1, 3, 64, 96)
    large = torch.zeros(1, 3, 80, 64)
    assert enlarge(large) is large
    assert np.all(lpips(small, other) > 0)
    assert np.all(lpips(small, small) == 0)


def test_constant_images_have_a_finite_distance():
    black, white = torch.zeros(2, 3, 64, 64).byte(), torch.full((2, 3, 64, 64), 255).byte()
    assert np.all(lpips(black, black) == 0)
    assert np.all(np.isfinite(lpips(black, white)))
    assert np.all(lpips(black, white) > 0.1)


def test_unpaired_images_are_refused(photos):
    with pytest.raises(BadImages, match="do not pair: 4 of 64x64 against 5"):
        lpips(photos[:4], photos[:5])


def test_progress_counts_pairs(photos):
    seen = []
    lpips(photos[:40], photos[:40], progress=seen.append)
    assert seen[-1] == 40
    assert seen == sorted(seen)


def test_manifest_states_the_file():
    entry = json.loads((ASSETS / "manifest.json").read_text())[WEIGHTS]
    assert entry["sha256"] == sha256_of(ASSETS / WEIGHTS) == weights_sha256()
    assert entry["bytes"] == (ASSETS / WEIGHTS).stat().st_size <= 10_000_000
    assert entry["parameters"] == sum(t.numel() for t in read_weights().values())
    assert "BSD" in (ASSETS / "NOTICE").read_text()


def test_every_weight_is_loaded():
    net, fresh = lpips_alex(), LpipsAlex()
    assert net.state_dict().keys() == fresh.state_dict().keys()
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert all(float(head.min()) >= 0 for head in net.heads)  # the paper keeps them so


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "no manifest"])
def test_damaged_weights_give_one_line(tmp_path, damage):
    for name in (WEIGHTS, "manifest.json"):
        shutil.copy(ASSETS / name, tmp_path)
    path = tmp_path / WEIGHTS
    blob = path.read_bytes()
    if damage == "cut":
        path.write_bytes(blob[: len(blob) // 2])
    elif damage == "flip":
        path.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    elif damage == "gone":
        path.unlink()
    else:
        (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BrokenWeights) as caught:
        read_weights(tmp_path)
    assert "\n" not in str(caught.value)
    assert "install the package again" in str(caught.value)
