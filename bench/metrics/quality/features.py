"""Features of a set of real images, with the constants that every comparison with it needs."""

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
        name: name of the set, such as ``cifar10-test``.
        images_sha256: hash of the images' bytes and shape.
        extractor: name of network and preprocessing.
        extractor_sha256: hash of the network's weights.
        size: side of the images in pixels, before any resize.
        self_similarity: mean kernel value of two different images of the set, a term of KID.
        pca: principal axes for the Frechet distance; None if the set varies along fewer axes.
        radii: (N,), distance of each image to its third nearest neighbour, for precision; None for
            sets of at most three images.
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
        """Set, hash and number of images, as measurements state their reference."""
        return set_label(self.name, self.images_sha256, len(self.tensor))


def set_label(name: str, sha256: str, images: int) -> str:
    """Set, hash and number of images, as measurements state their reference."""
    return f"{name} sha256:{sha256[:12]} n={images}"


def images_sha256(images: Tensor) -> str:
    """The hash of the shape and the bytes of uint8 images, in their order."""
    digest = sha256(canonical_json(list(images.shape)).encode())
    digest.update(images.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def features_of(
    images: Tensor, name: str, extractor: Extractor | None = None, *, half: bool = False
) -> Features:
    """Compute the features and all constants of a reference set.

    Args:
        images: uint8 (N, 3, S, S), N >= 2.
        name: name of the set.
        extractor: the network; EfficientNet-lite0 if None.
        half: round the features to fp16, so that a saved file is half as large.

    Raises:
        UserError: there is one image only.
        BadImages: the images are not square or not uint8.
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
    """Split a set at random: one half takes the place of generated images, the other is real.

    Args:
        features: features of at least four images.
        most: largest number of images in the first half.
        seed: seed of the split.

    Returns:
        Features (n, D) with n <= ``most``, and the reference that they are compared with.
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
