"""The interface of feature extractors, and the extraction of many images in batches."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from quantarena.bench.metrics.images import check_images

BATCH = 16


class Extractor(Protocol):
    """A network that maps images to feature vectors.

    Attributes:
        name: network and preprocessing. Extractors of one name give comparable features.
        sha256: hash of the weights.
    """

    name: str
    sha256: str

    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, 3, H, W) to float32 features (N, D)."""


def extract(
    images: Tensor,
    extractor: Extractor,
    *,
    batch: int = BATCH,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """The features of any number of images, computed in batches.

    Args:
        images: uint8 (N, 3, S, S).
        extractor: the network.
        batch: images per batch.
        progress: called with the number of images done.

    Returns:
        float32 (N, D), on the CPU.

    Raises:
        BadImages: the extractor refuses the images.
        ValueError: a feature is not finite.
    """
    check_images(images, "feature")
    parts = []
    for start in range(0, images.shape[0], batch):
        parts.append(extractor(images[start : start + batch]).cpu())
        if progress:
            progress(min(start + batch, images.shape[0]))
    features = torch.cat(parts)
    if not bool(features.isfinite().all()):
        raise ValueError(f"{extractor.name} gave features that are not finite")
    return features
