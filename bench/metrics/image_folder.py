"""Folders of images: reading one as a tensor, writing a tensor as one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from quantarena.bench.errors import UserError
from quantarena.bench.files import require_regular
from quantarena.bench.metrics.images import check_images

LOSSLESS = (".png",)
LOSSY = (".jpg", ".jpeg", ".webp")
_DIRECT = {"RGB", "L", "P", "1"}
_CLEAR = {"RGBA", "LA", "PA"}
STRIP = 4
"""Frames that the picture of a video shows."""
MOST_PIXELS = 1 << 26
"""Largest image that is read: a small file can claim any size."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images read from a folder.

    Attributes:
        images: uint8, (N, 3, H, W), in the order of the sorted file names.
        names: file name of each.
        warnings: one line for each kind of change that was made while reading.
    """

    images: Tensor
    names: tuple[str, ...]
    warnings: tuple[str, ...]


def load_folder(
    folder: Path,
    *,
    minimum: int = 2,
    limit: int | None = None,
    square: bool = True,
    lossy: bool = False,
) -> ImageSet:
    """Read the images of a folder (not of its subfolders), sorted by name, all of one size.

    Args:
        folder: the folder. Hidden files are left out.
        minimum: least number of images.
        limit: read only the first ``limit`` images.
        square: refuse images that are not square.
        lossy: read JPEG and WebP files too, with a warning: compression changes every metric.

    Raises:
        UserError: there is no such folder, there are too few images, or one is corrupt, of
            another size, not square, or deeper than 8 bits. The message names the file.
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
        picture, notes = _read(path)
        for note in notes:
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


def load_image(path: Path) -> tuple[Tensor, tuple[str, ...]]:
    """One image as uint8 (1, 3, H, W), and notes on what was changed in it. Raises UserError."""
    picture, notes = _read(path)
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].contiguous(), tuple(notes)


def save_videos(images: Tensor, frames: int, folder: Path) -> None:
    """Write each video as a strip of a few frames, and each frame in a folder of its own.

    ``0000.png`` shows the first, the last and two frames between them of video 0, side by side;
    ``0000/000.png`` is its first frame.

    Args:
        images: uint8 (N x F, 3, H, W), the frames of a video one after the other.
        frames: F.
        folder: the folder.

    Raises:
        BadImages, OSError: the images are none, or the folder cannot be written.
    """
    check_images(images, "saved")
    folder.mkdir(parents=True, exist_ok=True)
    for video in range(len(images) // frames):
        shown = images[video * frames : (video + 1) * frames]
        Image.fromarray(strip(shown)).save(folder / f"{video:04d}.png")
        place = folder / f"{video:04d}"
        place.mkdir(exist_ok=True)
        for number, picture in enumerate(shown.permute(0, 2, 3, 1).cpu().numpy()):
            Image.fromarray(picture).save(place / f"{number:03d}.png")


def strip(frames: Tensor) -> np.ndarray:
    """A few frames of a video side by side.

    Args:
        frames: uint8 (F, 3, H, W).

    Returns:
        uint8 (H, W x n, 3), n up to ``STRIP``.
    """
    count = min(STRIP, len(frames))
    places = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return np.concatenate([frames[int(k)].permute(1, 2, 0).cpu().numpy() for k in places], 1)


def _read(path: Path) -> tuple[np.ndarray, list[str]]:
    """One image as uint8 (H, W, 3), and notes on what was changed in it."""
    try:
        require_regular(path, path)
        with Image.open(path) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise UserError(f"{path} is {opened.width}x{opened.height}: too large to score")
            opened.load()
            mode, notes = opened.mode, []
            # A camera may store a picture lying on its side; every viewer turns it.
            image = ImageOps.exif_transpose(opened)
            if opened.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
                notes.append("turned as its EXIF orientation says")
            if mode in _CLEAR or "transparency" in image.info:
                clear = image.convert("RGBA")
                white = Image.new("RGBA", clear.size, "white")
                flat = Image.alpha_composite(white, clear).convert("RGB")
                return np.asarray(flat), [*notes, "transparent pixels put on white"]
            if mode not in _DIRECT:
                raise UserError(f"{path} has mode {mode}, expected 8-bit RGB or gray")
            if mode != "RGB":
                notes.append(f"{mode} made RGB")
            return np.asarray(image.convert("RGB")), notes
    except UserError:
        raise
    except Exception as error:
        # PIL raises many types for a damaged file, depending on the byte.
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
