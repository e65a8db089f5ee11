"""Images as voters get them: pixels and nothing else, under names that say nothing."""

import hashlib
import io
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
from PIL import Image

from quantarena.leaderboard.page.gallery import open_image

CACHE_BYTES = 192 * 2**20
"""Encoded images that stay in memory."""
DESTROY = "destroy"
"""The treatment of the image that a check spoils."""


class Pictures:
    """Reads image files once and keeps what is served. Safe to use from several threads."""

    def __init__(self, most: int = CACHE_BYTES) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[Path, str], bytes] = OrderedDict()
        self._hashes: dict[Path, str] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def sha256(self, path: Path) -> str:
        """The sha256 of an image file, 64 hex digits.

        Raises:
            OSError: it cannot be read.
        """
        with self._lock:
            found = self._hashes.get(path)
        if found is None:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            with self._lock:
                self._hashes[path] = found
        return found

    def png(self, path: Path, treatment: str = "") -> bytes:
        """An image as PNG without any metadata.

        Args:
            path: the image file.
            treatment: ``DESTROY``, or nothing.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it cannot be read; one line says why.
        """
        key = (path, treatment)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        data = encoded(path, treatment)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = data
                self._bytes += len(data)
            while self._bytes > self._most and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= len(dropped)
        return data


def encoded(path: Path, treatment: str = "") -> bytes:
    """See ``Pictures.png``."""
    # A new image from the pixels: EXIF, texts and colour profiles stay behind with the old one.
    pixels = np.asarray(open_image(path))
    if treatment == DESTROY:
        pixels = destroyed(pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def destroyed(
    pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]",
) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """An image spoilt beyond doubt: an 8 by 8 mosaic of two levels a channel, its tiles mixed up.

    Args:
        pixels: (H, W, 3) of uint8.
    """
    small = Image.fromarray(pixels).resize((8, 8), Image.Resampling.BOX)
    tiles = np.asarray(small).reshape(64, 3)
    rng = np.random.default_rng(0)
    coarse = np.where(tiles > np.median(tiles, axis=0), 224, 32).astype(np.uint8)
    mixed = coarse[rng.permutation(64)].reshape(8, 8, 3)
    shape = (pixels.shape[1], pixels.shape[0])
    return np.asarray(Image.fromarray(mixed).resize(shape, Image.Resampling.NEAREST))
