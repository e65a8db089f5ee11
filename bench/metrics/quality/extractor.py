"""What a feature extractor is, and extraction of many images in batches."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from quantarena.bench.metrics.images import check_images

BATCH = 16


class Extractor(Protocol):
    """What turns images into feature vectors.

    Attributes:
        name: network and preprocessing; two extractors of one name give comparable features.
        sha256: of the weights.
    """

    name: str
    sha256: str

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) to float32 (N, D)."""


def extract(
    images: Tensor,
    extractor: Extractor,
    *,
    batch: int = BATCH,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Features of any number of images, in batches.

    Args:
        images: uint8 (N, 3, S, S).
        extractor: the network.
        batch: images at once.
        progress: called with the number of images done.

    Returns:
        float32 (N, D), on the CPU.

    Raises:
        BadImages: as the extractor does.
        ValueError: the network gave values that are not finite.
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
