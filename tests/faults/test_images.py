"""Damaged pictures: the page says which and shows the others; real images are refused."""

import io
import struct
import zlib

import damage
import numpy as np
import pytest
from PIL import Image

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.image_folder import load_folder


def encoded(kind, side=16):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def oversized(side):
    """A PNG of some bytes that claims a side of many pixels."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bad_images():
    png, jpeg = encoded("PNG"), encoded("JPEG")
    yield from (b"", b"\0" * 64, b"<html>", *map(oversized, (9000, 12_000, 100_000, 2**31 - 1)))
    for data in (png, jpeg, encoded("GIF"), encoded("TIFF"), encoded("WEBP")):
        yield from (*damage.cut(data, 8), *damage.flipped(data, 8))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_folders_of_real_images(tmp_path, tried):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded("PNG"))
    for suffix in ("png", "jpg"):
        for data in bad_images():
            file = tmp_path / f"9.{suffix}"
            file.write_bytes(data)
            tried("images")
            line = file.name
            try:
                images = load_folder(tmp_path, lossy=True).images
            except UserError as error:
                line = str(error)
            else:
                assert images.shape == (4, 3, 16, 16)
            assert file.name in line
        file.unlink()
    for kind in damage.NOT_FILES:
        damage.not_a_file(tmp_path / "9.png", kind)
        tried("images")
        with pytest.raises(UserError, match=r"9\.png is not a readable image"):
            load_folder(tmp_path)
        (tmp_path / "9.png").rmdir() if kind == "folder" else (tmp_path / "9.png").unlink()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("method", ["fp", "rtn"])
def test_pictures_of_a_cell(method, done, survives, real_page, tried):
    row = next(r for r in done.rows() if r.cell.method == method)
    folder = done.results / "smoke" / row.artefacts["images"]
    whole = (folder / "0000.png").read_bytes()
    page = done.results / "smoke/leaderboard.html"
    for data in list(bad_images())[::5]:
        (folder / "0000.png").write_bytes(data)
        survives("render", "smoke", codes=(0,))
        tried("images")
    damage.not_a_file(folder / "0000.png", "pipe")
    survives("render", "smoke", codes=(0,))
    assert "1 picture could not be read" in page.read_text("utf-8")
    (folder / "0000.png").unlink()
    (folder / "0000.png").write_bytes(whole)
    survives("render", "smoke", codes=(0,))
    assert "could not be read" not in page.read_text("utf-8")


def test_a_cell_whose_pictures_are_all_damaged(done, survives, real_page):
    row = next(r for r in done.rows() if r.cell.method == "fp")
    for file in (done.results / "smoke" / row.artefacts["images"]).glob("*.png"):
        file.write_bytes(b"damaged")
    survives("render", "smoke", codes=(0,))
    page = (done.results / "smoke/leaderboard.html").read_text("utf-8")
    assert "4 pictures could not be read" in page
