"""A reference set as features, with what every comparison against it needs, in one file."""

from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.quality.effnet import effnet_lite0
from quantarena.bench.metrics.quality.extractor import Extractor, extract
from quantarena.bench.metrics.quality.frechet import AXES, Pca, fit_pca
from quantarena.bench.metrics.quality.kid import self_similarity
from quantarena.bench.metrics.quality.precision_recall import NEIGHBOURS, radii
from quantarena.bench.spec import canonical_json


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
    return complete(tensor, meta)


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
    return features.tensor[order[:middle][:most]], complete(tensor, meta)


def complete(
    tensor: Tensor,
    meta: dict[str, str | int],
    similarity: float | None = None,
    pca: Pca | None = None,
    sizes: Tensor | None = None,
) -> Features:
    """Features with their constants: those that are not given are computed.

    Args:
        tensor: float32 (N, D).
        meta: name, hash and size of the images; name and hash of the extractor.
        similarity: ``Features.self_similarity``.
        pca: ``Features.pca``.
        sizes: ``Features.radii``.

    Raises:
        UserError: the set holds one image only.
    """
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
