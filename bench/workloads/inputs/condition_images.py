"""Images of a folder that pipelines start from: what to change, where to paint, what to follow.

Image ``i`` of a workload takes file ``i`` in the order of sorted names, and starts again after the
last one; calibration takes them from the end, as it takes prompts. No torch.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantarena.bench.content import file_sha256
from quantarena.bench.errors import UserError
from quantarena.bench.files import require_regular
from quantarena.bench.workloads.inputs.kinds import FOLDERS, MASKS

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MOST_PIXELS = 1 << 26
"""Largest image that is read: a small file can claim any size."""
Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class ConditionImages:
    """The condition images of one kind.

    Attributes:
        setting: ``images``, ``masks`` or ``control``.
        files: in order.
        sha256: hash of the bytes of all files in order; names do not enter.
    """

    setting: str
    files: tuple[Path, ...]
    sha256: str


def find_images(given: Mapping[str, Path], workload: str) -> tuple[ConditionImages, ...]:
    """The condition images in some folders.

    Args:
        given: setting to folder.
        workload: name of the workload, for messages.

    Raises:
        UserError: one is no folder or holds no image, or their numbers do not fit.
    """
    found = tuple(
        _found(setting, given[setting], workload) for setting in FOLDERS if setting in given
    )
    counts = {each.setting: len(each.files) for each in found}
    if len({count for count in counts.values() if count > 1}) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UserError(
            f"workload {workload}: {listed}: files go together by the order of their names, so "
            "give as many of each, or one for all"
        )
    return found


def _found(setting: str, folder: Path, workload: str) -> ConditionImages:
    what = f"workload {workload}: {setting}={folder}"
    if not os.path.isdir(folder):
        raise UserError(f"{what} is no folder")
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in ENDINGS and not file.name.startswith(".")
    )
    if not files:
        raise UserError(f"{what} holds no image ({', '.join(e[1:] for e in ENDINGS)})")
    digest = hashlib.sha256("".join(map(file_sha256, files)).encode())
    return ConditionImages(setting, tuple(files), digest.hexdigest())


def content(inputs: Sequence[ConditionImages]) -> list[list[str]]:
    """What enters keys: the settings and the hashes, not the folders' names."""
    return [[each.setting, each.sha256] for each in inputs]


def file_of(images: ConditionImages, place: int) -> Path:
    """The file of one image; negative places count from the end, for calibration."""
    return images.files[place % len(images.files)]


def require_one_size(inputs: Sequence[ConditionImages], size: Size | None, workload: str) -> None:
    """Check that images which are not brought to a size have one.

    Raises:
        UserError: an image cannot be read, or two have several sizes; the line names them.
    """
    first: tuple[Path, Size] | None = None
    for file in (file for each in inputs for file in each.files):
        found = _size(file)
        if size is not None:
            continue
        if first is None:
            first = file, found
        elif found != first[1]:
            raise UserError(
                f"workload {workload}: {file} is {found[0]}x{found[1]} and {first[0]} is "
                f"{first[1][0]}x{first[1][1]}: give all one size, or say it with resolution=PIXELS"
            )


def read_image(images: ConditionImages, place: int, size: Size | None) -> "Image":
    """One condition image: RGB, or gray for masks.

    Args:
        images: where it is from.
        place: its place, see ``file_of``.
        size: it is cut to this shape about its middle and brought to this size; None leaves it.

    Raises:
        UserError: it cannot be read; the line names it.
    """
    from PIL import Image, ImageOps

    file = file_of(images, place)
    _size(file)
    mask = images.setting == MASKS
    try:
        with Image.open(file) as opened:
            # A camera may store a picture lying on its side; every viewer turns it.
            turned = ImageOps.exif_transpose(opened)
            if not mask and (turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info):
                clear = turned.convert("RGBA")
                turned = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
            image = turned.convert("L" if mask else "RGB")
    except Exception as error:  # PIL raises many types for a damaged file
        raise UserError(f"{file} is not a readable image: {error}") from None
    if size is None or image.size == size:
        return image
    # A mask stays black and white: what lies between would be neither kept nor painted.
    method = Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS
    return ImageOps.fit(image, size, method)


def _size(file: Path) -> Size:
    """Width and height of an image as a viewer shows it."""
    from PIL import ExifTags, Image

    try:
        require_regular(file, file)
        with Image.open(file) as opened:
            width, height = opened.size
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Exception as error:  # PIL raises many types for a damaged file
        raise UserError(f"{file} is not a readable image: {error}") from None
    if width * height > MOST_PIXELS:
        raise UserError(f"{file} is {width}x{height}: too large to draw from")
    return (height, width) if turned else (width, height)
