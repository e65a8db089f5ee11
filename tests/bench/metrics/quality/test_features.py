import stat

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.image_folder import save_folder
from quantarena.bench.metrics.images import BadImages
from quantarena.bench.metrics.quality import features, features_file
from quantarena.bench.metrics.quality.effnet import effnet_lite0
from quantarena.bench.metrics.quality.features import features_of, images_sha256
from quantarena.bench.metrics.quality.features_file import (
    load_features,
    reference_features,
    save_features,
)
from quantarena.bench.metrics.quality.kid import self_similarity
from quantarena.bench.metrics.quality.precision_recall import radii


class Means:
    """An extractor that costs nothing: averages of a 7x7 grid."""

    name, sha256 = "means/7", "0" * 64

    def __init__(self):
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 7).flatten(1)


@pytest.fixture
def means():
    return Means()


def same(a, b):
    assert torch.equal(a.tensor, b.tensor)
    assert (a.name, a.images_sha256, a.extractor, a.size) == (
        b.name,
        b.images_sha256,
        b.extractor,
        b.size,
    )
    assert a.self_similarity == b.self_similarity
    assert all(torch.equal(x, y) for x, y in zip(a.pca, b.pca, strict=True))
    assert torch.equal(a.radii, b.radii)


def test_hash_is_of_content_and_order(photos):
    assert images_sha256(photos) == images_sha256(photos.clone())
    assert images_sha256(photos) != images_sha256(photos.flip(0))
    assert images_sha256(photos[:1]) != images_sha256(photos[:1].reshape(1, 3, 32, 128))
    assert images_sha256(photos.to(memory_format=torch.channels_last)) == images_sha256(photos)


def test_file_round_trip(tmp_path, photos, means):
    found = features_of(photos, "crops", means)
    save_features(found, tmp_path / "a" / "crops.safetensors")
    same(load_features(tmp_path / "a" / "crops.safetensors", means), found)
    assert found.self_similarity == self_similarity(found.tensor)
    assert torch.equal(found.radii, radii(found.tensor))
    assert found.label.startswith("crops sha256:")
    assert found.label.endswith(" n=80")
    assert found.size == 64


def test_same_features_same_bytes(tmp_path, photos, means):
    found = features_of(photos, "crops", means)
    for name in "abc":
        save_features(found, tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]
    assert (tmp_path / "a").stat().st_mode & stat.S_IRGRP


def test_half_is_half_the_size_and_consistent(tmp_path, photos, means):
    half = features_of(photos, "crops", means, half=True)
    save_features(half, tmp_path / "half")
    assert load_file(tmp_path / "half")["features"].dtype == torch.float16
    same(load_features(tmp_path / "half"), half)
    assert half.self_similarity == self_similarity(half.tensor)


def test_folder_and_tensor_agree_and_are_computed_once(tmp_path, photos, means):
    save_folder(photos, tmp_path / "pictures")
    cache = tmp_path / "cache"
    first = reference_features(tmp_path / "pictures", cache, extractor=means)
    calls = means.calls
    assert calls > 0
    assert first.name == "pictures"
    second = reference_features(photos, cache, name="other", extractor=means)
    assert means.calls == calls
    assert second.name == "other"
    assert torch.equal(first.tensor, second.tensor)
    assert len(list(cache.iterdir())) == 1
    reference_features(photos[:70], cache, extractor=means)
    assert len(list(cache.iterdir())) == 2


def test_changed_pictures_are_logged(tmp_path, photos, means, caplog):
    save_folder(photos[:2], tmp_path)
    clear = torch.cat([photos[2], photos[2, :1]]).permute(1, 2, 0).numpy()
    Image.fromarray(clear).save(tmp_path / "0009.png")
    reference_features(tmp_path, extractor=means)
    assert "transparent pixels put on white (1 images, 0009.png first)" in caplog.text


def test_without_a_cache_nothing_is_written(tmp_path, photos, means, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reference_features(photos, extractor=means)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"", b"\x08", None])
def test_damaged_cache_is_computed_again(tmp_path, photos, means, damage):
    first = reference_features(photos, tmp_path, extractor=means)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    same(reference_features(photos, tmp_path, extractor=means), first)
    same(load_features(path), first)


def test_a_file_of_features_is_a_reference(tmp_path, photos, means, monkeypatch):
    save_features(features_of(photos, "shipped", means), tmp_path / "f.safetensors")
    monkeypatch.setattr(features, "extract", None)  # no image is looked at
    assert reference_features(tmp_path / "f.safetensors", extractor=means).name == "shipped"


def test_missing_constants_are_computed(tmp_path, photos, means):
    full = features_of(photos, "crops", means)
    save_features(full, tmp_path / "full")
    with features_file.safe_open(tmp_path / "full", framework="pt") as file:
        meta = file.metadata()
    meta["quantarena"] = meta["quantarena"].replace('"self_similarity"', '"unknown"')
    save_file({"features": full.tensor}, tmp_path / "bare", metadata=meta)
    same(load_features(tmp_path / "bare"), full)


def test_features_of_another_network_are_refused(tmp_path, photos, means):
    save_features(features_of(photos, "crops", means), tmp_path / "f")
    with pytest.raises(UserError, match="other weights than effnet-lite0"):
        load_features(tmp_path / "f", effnet_lite0())
    other = Means()
    other.name = "means/9"
    with pytest.raises(UserError, match="features of means/7, not of means/9"):
        load_features(tmp_path / "f", other)


@pytest.mark.parametrize("kind", ["text", "no metadata", "nan", "one image", "gone"])
def test_files_that_hold_no_features(tmp_path, kind):
    path = tmp_path / "f"
    meta = {
        "quantarena": '{"name":"x","images_sha256":"","extractor":"e",'
        '"extractor_sha256":"","size":64}'
    }
    if kind == "text":
        path.write_text("hello")
    elif kind == "no metadata":
        save_file({"features": torch.ones(3, 3)}, path)
    elif kind == "nan":
        save_file({"features": torch.full((3, 3), np.nan)}, path, metadata=meta)
    elif kind == "one image":
        save_file({"features": torch.ones(1, 3)}, path, metadata=meta)
    with pytest.raises(UserError) as caught:
        load_features(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_references(tmp_path, photos, means):
    with pytest.raises(UserError, match="holds one image"):
        reference_features(photos[:1], extractor=means)
    with pytest.raises(UserError, match="not a folder"):
        reference_features(tmp_path / "nowhere", extractor=means)
    with pytest.raises(BadImages, match="NaN"):
        reference_features(torch.full((2, 3, 64, 64), np.nan), extractor=means)


def test_a_cache_that_cannot_be_written(tmp_path, photos, means):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        reference_features(photos, tmp_path / "file", extractor=means)
