"""The form of images in all metrics: uint8, (N, 3, H, W).

Every metric reads 8-bit images, as a viewer of the PNG would, so errors below one of the 256 levels
neither help nor harm a method.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from quantarena.bench.errors import QuantArenaError

MIN_SIDE = 8


class BadImages(QuantArenaError, ValueError):
    """Images that no metric can score: NaN, another type or another shape."""


def check_images(images: Tensor, what: str) -> None:
    """Refuse anything but uint8 (N >= 1, 3, H >= 8, W >= 8).

    Args:
        images: the images to check.
        what: name of the images in the message, such as ``test``.

    Raises:
        BadImages: they are anything else. NaN and infinite values are named and counted.
    """
    if images.is_floating_point():
        _check_finite(images, what)
    if images.dtype != torch.uint8:
        raise BadImages(
            f"{what} images are {str(images.dtype).removeprefix('torch.')}, expected uint8 in "
            "0..255 (to_uint8 makes them from [0, 1])"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise BadImages(f"{what} images have shape {tuple(images.shape)}, expected (N, 3, H, W)")
    if images.shape[0] == 0:
        raise BadImages(f"there are no {what} images")
    if min(images.shape[2:]) < MIN_SIDE:
        raise BadImages(
            f"{what} images are {_size(images)}, the smallest side allowed is {MIN_SIDE}"
        )


def check_pairs(fp: Tensor, test: Tensor) -> None:
    """Check that two sets pair image by image. Raises BadImages if they do not."""
    check_images(fp, "full-precision")
    check_images(test, "test")
    if fp.shape != test.shape:
        raise BadImages(
            f"full-precision and test images do not pair: {fp.shape[0]} of {_size(fp)} "
            f"against {test.shape[0]} of {_size(test)}"
        )


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [0, 1] to the 8-bit grid; values outside are clipped.

    Args:
        images: floating point, (N, 3, H, W).

    Returns:
        uint8, the same shape.

    Raises:
        BadImages: there are NaN or infinite values, which clipping would hide.
    """
    if not images.is_floating_point():
        raise BadImages(f"to_uint8 takes floating point in [0, 1], not {images.dtype}")
    _check_finite(images, "sampled")
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def to_unit(images: Tensor, device: str = "cpu") -> Tensor:
    """Convert uint8 images to float32 in [0, 1] on a device."""
    return images.to(device=device, dtype=torch.float32) / 255


def chunks(images: Tensor, pixels: int = 1 << 17) -> Iterator[slice]:
    """Slices of the images of about ``pixels`` pixels each, which bound the memory of a metric."""
    step = max(1, min(64, pixels // (images.shape[2] * images.shape[3])))
    for start in range(0, images.shape[0], step):
        yield slice(start, start + step)


def _check_finite(images: Tensor, what: str) -> None:
    for name, bad in (("NaN", images.isnan()), ("infinite", images.isinf())):
        count = int(bad.sum())
        if count:
            first = int(bad.flatten(1).any(1).nonzero()[0]) if images.ndim > 1 else 0
            raise BadImages(f"{what} images hold {count} {name} values, first in image {first}")


def _size(images: Tensor) -> str:
    return f"{images.shape[3]}x{images.shape[2]}"
