"""Files of reference features: writing, reading with checks, and a cache of computed ones."""

import json
import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from quantarena.bench.closure import closure
from quantarena.bench.errors import UserError
from quantarena.bench.metrics.image_folder import load_folder
from quantarena.bench.metrics.quality.effnet import effnet_lite0
from quantarena.bench.metrics.quality.extractor import Extractor
from quantarena.bench.metrics.quality.features import (
    Features,
    complete,
    features_of,
    images_sha256,
)
from quantarena.bench.metrics.quality.frechet import Pca
from quantarena.bench.spec import canonical_json, content_key

_LOG = logging.getLogger(__name__)
_META = "quantarena"
_PCA = ("pca_mean", "pca_axes", "pca_variances")


def reference_features(
    source: Tensor | Path,
    cache_dir: Path | None = None,
    *,
    name: str = "reference",
    extractor: Extractor | None = None,
) -> Features:
    """The features of a reference set, from a file, from the cache, or computed now.

    Args:
        source: uint8 images (N, 3, S, S), a folder of images, or a file of features. Changes to
            the images of a folder are logged as warnings.
        cache_dir: folder that keeps computed features under the hash of images and extractor. A
            damaged file there is replaced.
        name: name of the set; by default that of the folder or of the file.
        extractor: the network; EfficientNet-lite0 if None.

    Raises:
        UserError: there is nothing at the path, an image cannot be read, or the file has
            features of another extractor.
        BadImages: the images are not square or not uint8.
    """
    network = extractor or effnet_lite0()
    if isinstance(source, Path):
        if source.is_file():
            return load_features(source, network)
        name = source.name if name == "reference" else name
        image_set = load_folder(source, lossy=True)
        for line in image_set.warnings:
            _LOG.warning(line)
        source = image_set.images
    if cache_dir is None:
        return features_of(source, name, network)
    inputs = [images_sha256(source), network.name, network.sha256, closure(__name__).key]
    path = cache_dir / f"features-{content_key(inputs, 24)}.safetensors"
    if path.is_file():
        try:
            return replace(load_features(path, network), name=name)
        except UserError:
            path.unlink(missing_ok=True)
    features = features_of(source, name, network)
    save_features(features, path)
    return features


def save_features(features: Features, path: Path) -> None:
    """Write features as one safetensors file, whole or not at all; in fp16 if that is exact.

    Raises:
        UserError: the folder cannot be written.
    """
    small = features.tensor.half()
    exact = bool((small.float() == features.tensor).all())
    tensors = {"features": small if exact else features.tensor}
    if features.pca is not None:
        tensors |= dict(zip(_PCA, features.pca, strict=True))
    if features.radii is not None:
        tensors["radii"] = features.radii
    # One metadata entry only: the order of several is not fixed, so the bytes would vary.
    meta = {
        "name": features.name,
        "images_sha256": features.images_sha256,
        "extractor": features.extractor,
        "extractor_sha256": features.extractor_sha256,
        "size": features.size,
        "self_similarity": features.self_similarity,
    }
    blob = save(tensors, metadata={_META: canonical_json(meta)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".features-") as folder:
            # Written elsewhere and renamed: a reader sees no file or the whole file.
            draft = Path(folder) / path.name
            draft.write_bytes(blob)
            os.replace(draft, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def load_features(path: Path, extractor: Extractor | None = None) -> Features:
    """Read a file of features. Constants that it lacks are computed.

    Args:
        path: safetensors with ``features`` (N, D) and the description in its metadata.
        extractor: if given, the features must be those of this extractor.

    Raises:
        UserError: the file is damaged, has other content, values that are not finite, or
            features of another extractor.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})[_META])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensor = tensors["features"].float()
        wanted = ("name", "images_sha256", "extractor", "extractor_sha256", "size")
        plain = {key: meta[key] for key in wanted}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a file of reference features: {error}") from None
    if tensor.ndim != 2 or tensor.shape[0] < 2 or not bool(tensor.isfinite().all()):
        raise UserError(f"{path} holds no usable features: shape {tuple(tensor.shape)}")
    if extractor is not None and plain["extractor_sha256"] != extractor.sha256:
        raise UserError(f"{path} holds features of other weights than {extractor.name} has")
    if extractor is not None and plain["extractor"] != extractor.name:
        raise UserError(f"{path} holds features of {plain['extractor']}, not of {extractor.name}")
    pca = Pca(*(tensors[name] for name in _PCA)) if all(name in tensors for name in _PCA) else None
    return complete(tensor, plain, meta.get("self_similarity"), pca, tensors.get("radii"))
