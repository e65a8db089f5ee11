import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from quantarena.leaderboard.arena.images import DESTROY, Pictures, destroyed, encoded


@pytest.fixture
def noisy(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    path = tmp_path / "0000.png"
    secret = PngImagePlugin.PngInfo()
    secret.add_text("method", "rtn@w4a4")
    exif = Image.Exif()
    exif[0x010E] = "drawn by rtn@w4a4"
    Image.fromarray(pixels).save(
        path, pnginfo=secret, exif=exif, icc_profile=b"profile of rtn@w4a4", dpi=(300, 300)
    )
    return path, pixels


def test_pixels_stay_and_everything_else_goes(noisy):
    path, pixels = noisy
    assert b"rtn" in path.read_bytes()
    data = encoded(path)
    image = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(image), pixels)
    assert image.info == {}
    assert not image.getexif()
    chunks = {data[at + 4 : at + 8] for at in chunk_starts(data)}
    assert chunks == {b"IHDR", b"IDAT", b"IEND"}


def chunk_starts(data):
    at = 8
    while at < len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def test_a_destroyed_image_is_another_image_of_the_same_size(noisy):
    path, pixels = noisy
    spoilt = np.asarray(Image.open(io.BytesIO(encoded(path, DESTROY))))
    assert spoilt.shape == pixels.shape
    assert set(np.unique(spoilt)) <= {32, 224}
    assert np.array_equal(destroyed(pixels), spoilt)


def test_files_are_read_once(noisy):
    path, _ = noisy
    pictures = Pictures()
    first, digest = pictures.png(path), pictures.sha256(path)
    path.unlink()
    assert pictures.png(path) is first
    assert pictures.sha256(path) == digest
    with pytest.raises(FileNotFoundError):
        pictures.png(path, DESTROY)


def test_memory_is_bounded(tmp_path):
    paths = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number:04d}.png")
        Image.fromarray(pixels).save(paths[-1])
    pictures = Pictures(most=30_000)
    for path in paths:
        pictures.png(path)
    assert pictures._bytes <= 30_000
    assert len(pictures._kept) == 2


def test_a_damaged_image_is_one_line(tmp_path):
    path = tmp_path / "0000.png"
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r".") as fault:
        encoded(path)
    assert len(str(fault.value).splitlines()) == 1
