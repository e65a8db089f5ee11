"""A reference set as features, with what every comparison against it needs, in one file."""

import json
import logging
import os
import tempfile
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from quantarena.bench.closure import closure
from quantarena.bench.errors import UserError
from quantarena.bench.metrics.images import load_folder
from quantarena.bench.metrics.quality.effnet import Extractor, effnet_lite0, extract
from quantarena.bench.metrics.quality.frechet import AXES, Pca, fit_pca
from quantarena.bench.metrics.quality.kid import self_similarity
from quantarena.bench.metrics.quality.precision_recall import NEIGHBOURS, radii
from quantarena.bench.spec import canonical_json, content_key

_LOG = logging.getLogger(__name__)
_META = "quantarena"
_PCA = ("pca_mean", "pca_axes", "pca_variances")


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Feature vectors of a set of real images.

    Attributes:
        tensor: float32 (N, D).
        name: of the set, such as ``cifar10-test``.
        images_sha256: of the images' bytes and shape.
        extractor: name of network and preprocessing.
        extractor_sha256: of the network's weights.
        size: side of the images in pixels, before any resize.
        self_similarity: mean kernel value of two different images of the set (KID's constant).
        pca: mean, axes and variances for the Frechet distance; None where the set does not
            vary in that many directions.
        radii: (N,), distance of each image to its third nearest neighbour, the size of its ball
            for precision; None for sets of three images or fewer.
    """

    tensor: Tensor
    name: str
    images_sha256: str
    extractor: str
    extractor_sha256: str
    size: int
    self_similarity: float
    pca: Pca | None
    radii: Tensor | None = None

    @property
    def label(self) -> str:
        """Set, hash and number of images: what a measurement says it was compared with."""
        return f"{self.name} sha256:{self.images_sha256[:12]} n={self.tensor.shape[0]}"


def images_sha256(images: Tensor) -> str:
    """Hash of the shape and the bytes of uint8 images: order matters, file format does not."""
    digest = sha256(canonical_json(list(images.shape)).encode())
    digest.update(images.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def features_of(
    images: Tensor, name: str, extractor: Extractor | None = None, *, half: bool = False
) -> Features:
    """Compute features and all constants of a reference set.

    Args:
        images: uint8 (N, 3, S, S), N >= 2.
        name: of the set.
        extractor: the network; EfficientNet-lite0 unless given.
        half: round the features to fp16 first, so that a saved file is half as large.

    Raises:
        UserError: one image only.
        BadImages: not square uint8 images.
    """
    network = extractor or effnet_lite0()
    tensor = extract(images, network)
    if half:
        tensor = tensor.half().float()
    meta: dict[str, str | int] = {
        "name": name,
        "images_sha256": images_sha256(images),
        "extractor": network.name,
        "extractor_sha256": network.sha256,
        "size": int(images.shape[2]),
    }
    return _complete(tensor, meta)


def reference_features(
    source: Tensor | Path,
    cache_dir: Path | None = None,
    *,
    name: str = "reference",
    extractor: Extractor | None = None,
) -> Features:
    """Features of a reference set, computed once.

    Args:
        source: uint8 images (N, 3, S, S), a folder of pictures, or a file of features. What had
            to be changed in a folder's pictures is logged as a warning.
        cache_dir: where computed features are kept, under the hash of images and extractor. A
            damaged file there is computed again.
        name: of the set; a folder's or a file's own name wins over the default.
        extractor: the network; EfficientNet-lite0 unless given.

    Raises:
        UserError: nothing there, unreadable pictures, or features of another extractor.
        BadImages: not square uint8 images.
    """
    network = extractor or effnet_lite0()
    if isinstance(source, Path):
        if source.is_file():
            return load_features(source, network)
        name = source.name if name == "reference" else name
        found_set = load_folder(source, lossy=True)
        for line in found_set.warnings:
            _LOG.warning(line)
        source = found_set.images
    if cache_dir is None:
        return features_of(source, name, network)
    inputs = [images_sha256(source), network.name, network.sha256, closure(__name__).key]
    mark = content_key(inputs, 24)
    path = cache_dir / f"features-{mark}.safetensors"
    if path.is_file():
        try:
            return replace(load_features(path, network), name=name)
        except UserError:
            path.unlink(missing_ok=True)
    found = features_of(source, name, network)
    save_features(found, path)
    return found


def halves(features: Features, most: int, seed: int = 0) -> tuple[Tensor, Features]:
    """A set cut into two at random: the one half as if it had been generated, the other real.

    Args:
        features: of at least four images.
        most: images of the first half that are wanted.
        seed: of the cut.

    Returns:
        (n, D) features, n <= ``most``, and the reference that they are scored against.
    """
    order = torch.randperm(len(features.tensor), generator=torch.Generator().manual_seed(seed))
    middle = len(order) // 2
    tensor = features.tensor[order[middle:]]
    meta: dict[str, str | int] = {
        "name": f"{features.name} half",
        "images_sha256": features.images_sha256,
        "extractor": features.extractor,
        "extractor_sha256": features.extractor_sha256,
        "size": features.size,
    }
    return features.tensor[order[:middle][:most]], _complete(tensor, meta)


def save_features(features: Features, path: Path) -> None:
    """Write one safetensors file, whole or not at all; fp16 where that loses nothing.

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
    # One metadata entry: the order of several is not fixed, and neither would the bytes be.
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
            # Written beside and renamed: a reader sees no file or all of it.
            draft = Path(folder) / path.name
            draft.write_bytes(blob)
            os.replace(draft, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def load_features(path: Path, extractor: Extractor | None = None) -> Features:
    """Read a file of features; constants that it lacks are computed.

    Args:
        path: safetensors with ``features`` (N, D) and the description in its metadata.
        extractor: when given, the features must be its own.

    Raises:
        UserError: cut short, no such content, not finite, or another extractor's.
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
    return _complete(tensor, plain, meta.get("self_similarity"), pca, tensors.get("radii"))


def _complete(
    tensor: Tensor,
    meta: dict[str, str | int],
    similarity: float | None = None,
    pca: Pca | None = None,
    sizes: Tensor | None = None,
) -> Features:
    if tensor.shape[0] < 2:
        raise UserError(f"the reference {meta['name']} holds one image, at least 2 are needed")
    return Features(
        tensor=tensor,
        name=str(meta["name"]),
        images_sha256=str(meta["images_sha256"]),
        extractor=str(meta["extractor"]),
        extractor_sha256=str(meta["extractor_sha256"]),
        size=int(meta["size"]),
        self_similarity=self_similarity(tensor) if similarity is None else float(similarity),
        pca=fit_pca(tensor, AXES) if pca is None else pca,
        radii=radii(tensor) if sizes is None and len(tensor) > NEIGHBOURS else sizes,
    )
