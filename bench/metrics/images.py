"""What an image is here: uint8, (N, 3, H, W), on the 8-bit grid; and how a folder becomes that.

Every metric reads the 8-bit grid, as a viewer of the PNG would, so that noise below one level
neither helps nor harms a method.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from quantarena.bench.errors import QuantArenaError, UserError

MIN_SIDE = 8
LOSSLESS = (".png",)
LOSSY = (".jpg", ".jpeg", ".webp")
_DIRECT = {"RGB", "L", "P", "1"}
_CLEAR = {"RGBA", "LA", "PA"}


class BadImages(QuantArenaError, ValueError):
    """Images on which no metric has a meaning: NaN, another type, another shape."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images read from a folder.

    Attributes:
        images: uint8, (N, 3, H, W), in the order of the sorted file names.
        names: file name of each.
        warnings: what was changed on the way, one line each.
    """

    images: Tensor
    names: tuple[str, ...]
    warnings: tuple[str, ...]


def check_images(images: Tensor, what: str) -> None:
    """Refuse anything but uint8 (N >= 1, 3, H >= 8, W >= 8).

    Args:
        images: the candidate.
        what: how the message calls it, such as ``test``.

    Raises:
        BadImages: a ValueError; NaN and infinite values are named as such, with their count.
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
    """Refuse two sets that are not image-by-image pairs. Raises BadImages."""
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
        BadImages: NaN or infinite values, which clipping would hide.
    """
    if not images.is_floating_point():
        raise BadImages(f"to_uint8 takes floating point in [0, 1], not {images.dtype}")
    _check_finite(images, "sampled")
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def to_unit(images: Tensor, device: str = "cpu") -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return images.to(device=device, dtype=torch.float32) / 255


def chunks(images: Tensor, pixels: int = 1 << 17) -> Iterator[slice]:
    """Slices of about ``pixels`` pixels each, so that memory does not grow with N or size."""
    step = max(1, min(64, pixels // (images.shape[2] * images.shape[3])))
    for start in range(0, images.shape[0], step):
        yield slice(start, start + step)


def load_folder(
    folder: Path,
    *,
    minimum: int = 2,
    limit: int | None = None,
    square: bool = True,
    lossy: bool = False,
) -> ImageSet:
    """Read a folder of equally sized pictures (not its subfolders), sorted by name.

    Args:
        folder: where they lie. Hidden files are passed over.
        minimum: fewest pictures that make sense to the caller.
        limit: read the first so many only.
        square: refuse pictures that are not square; no resize keeps their shapes.
        lossy: take JPEG and WebP too, with a warning: compression moves every metric.

    Raises:
        UserError: no such folder, too few pictures, one that is corrupt, of another size, not
            square, or deeper than 8 bits. The message names the file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of images")
    kinds = LOSSLESS + (LOSSY if lossy else ())
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in kinds and not path.name.startswith(".")
    )[:limit]
    if len(paths) < minimum:
        known = ", ".join(kind[1:] for kind in kinds)
        raise UserError(f"{folder} holds {len(paths)} images ({known}), at least {minimum} needed")
    pictures: list[np.ndarray] = []
    seen: dict[str, list[str]] = {}
    for path in paths:
        picture, note = _read(path)
        if note:
            seen.setdefault(note, []).append(path.name)
        _check_size(picture, path, pictures, paths[0], square)
        pictures.append(picture)
    stack = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    lossy_names = [path.name for path in paths if path.suffix.lower() in LOSSY]
    if lossy_names:
        seen["lossy file format: compression moves every metric"] = lossy_names
    warnings = tuple(
        f"{folder.name}: {note} ({len(names)} images, {names[0]} first)"
        for note, names in seen.items()
    )
    return ImageSet(stack, tuple(path.name for path in paths), warnings)


def save_folder(images: Tensor, folder: Path) -> None:
    """Write uint8 images as ``0000.png``, ``0001.png``, ... Raises BadImages, OSError."""
    check_images(images, "saved")
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        Image.fromarray(picture).save(folder / f"{index:04d}.png")


def _check_finite(images: Tensor, what: str) -> None:
    for name, bad in (("NaN", images.isnan()), ("infinite", images.isinf())):
        count = int(bad.sum())
        if count:
            first = int(bad.flatten(1).any(1).nonzero()[0]) if images.ndim > 1 else 0
            raise BadImages(f"{what} images hold {count} {name} values, first in image {first}")


def _size(images: Tensor) -> str:
    return f"{images.shape[3]}x{images.shape[2]}"


def _read(path: Path) -> tuple[np.ndarray, str]:
    """One picture as uint8 (H, W, 3), and what had to be changed."""
    try:
        with Image.open(path) as image:
            image.load()
            mode = image.mode
            if mode in _CLEAR or "transparency" in image.info:
                clear = image.convert("RGBA")
                workspace = Image.new("RGBA", clear.size, "white")
                flat = Image.alpha_composite(workspace, clear).convert("RGB")
                return np.asarray(flat), "transparent pixels put on white"
            if mode not in _DIRECT:
                raise UserError(f"{path} has mode {mode}, expected 8-bit RGB or gray")
            return np.asarray(image.convert("RGB")), "" if mode == "RGB" else f"{mode} made RGB"
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        # PIL reports damage by any of these, depending on which byte is wrong.
        raise UserError(f"{path} is not a readable image: {error}") from None


def _check_size(
    picture: np.ndarray, path: Path, before: list[np.ndarray], first: Path, square: bool
) -> None:
    height, width = picture.shape[:2]
    if square and height != width:
        raise UserError(
            f"{path} is {width}x{height}, this set must be square: crop it first, "
            "a resize would bend its shapes"
        )
    if before and picture.shape != before[0].shape:
        h, w = before[0].shape[:2]
        raise UserError(
            f"{path.parent} mixes sizes: {first.name} is {w}x{h}, {path.name} is {width}x{height}"
        )
