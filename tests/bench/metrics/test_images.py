import numpy as np
import pytest
import torch
from PIL import Image

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.image_folder import load_folder, save_folder
from quantarena.bench.metrics.images import BadImages, check_images, chunks, to_uint8


@pytest.fixture
def folder(tmp_path, photos):
    save_folder(photos[:6], tmp_path / "set")
    return tmp_path / "set"


def test_folder_round_trip(folder, photos):
    found = load_folder(folder)
    assert torch.equal(found.images, photos[:6])
    assert found.names == tuple(f"{i:04d}.png" for i in range(6))
    assert found.warnings == ()
    assert torch.equal(load_folder(folder, limit=3).images, photos[:3])


def test_hidden_and_foreign_files_are_passed_over(folder):
    (folder / "._0000.png").write_bytes(b"resource fork")
    (folder / "notes.txt").write_text("hello")
    assert len(load_folder(folder).names) == 6


def test_transparent_pixels_become_white(folder):
    clear = np.zeros((64, 64, 4), dtype=np.uint8)
    clear[:32] = (10, 20, 30, 255)
    clear[32:48, :, 3] = 128
    Image.fromarray(clear).save(folder / "0002.png")
    found = load_folder(folder)
    assert found.images[2, :, 0, 0].tolist() == [10, 20, 30]
    assert found.images[2, :, 63, 0].tolist() == [255, 255, 255]
    assert found.images[2, :, 40, 0].tolist() == [127, 127, 127]
    assert found.warnings == ("set: transparent pixels put on white (1 images, 0002.png first)",)


def test_gray_and_palette_are_read_with_a_warning(folder, photos):
    picture = Image.fromarray(photos[0].permute(1, 2, 0).numpy())
    picture.convert("L").save(folder / "0000.png")
    picture.convert("P").save(folder / "0001.png")
    assert len(load_folder(folder).warnings) == 2
    assert load_folder(folder).images[0, 0].equal(load_folder(folder).images[0, 2])


def test_transparent_palette_becomes_white(folder):
    picture = Image.new("P", (64, 64), 0)
    picture.putpalette([255, 0, 0] * 256)
    picture.save(folder / "0003.png", transparency=0)
    assert load_folder(folder).images[3].min() == 255


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "checksum"])
def test_corrupt_png_is_named(folder, damage):
    path = folder / "0003.png"
    blob = bytearray(path.read_bytes())
    if damage == "checksum":
        blob[60] ^= 0xFF
    new = {"cut": blob[: len(blob) // 2], "text": b"not a picture", "empty": b""}
    path.write_bytes(new.get(damage, blob))
    with pytest.raises(UserError, match=r"0003\.png is not a readable image"):
        load_folder(folder)


def test_sixteen_bits_are_refused(folder):
    Image.fromarray(np.zeros((64, 64), dtype=np.uint16)).save(folder / "0001.png")
    with pytest.raises(UserError, match=r"0001\.png has mode I;16"):
        load_folder(folder)


def test_mixed_sizes_are_named(folder):
    Image.new("RGB", (32, 32)).save(folder / "0004.png")
    with pytest.raises(UserError, match=r"0000\.png is 64x64, 0004\.png is 32x32"):
        load_folder(folder)


def test_not_square_is_refused_unless_allowed(tmp_path):
    for name in "ab":
        Image.new("RGB", (48, 32)).save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match="48x32, this set must be square"):
        load_folder(tmp_path)
    assert load_folder(tmp_path, square=False).images.shape == (2, 3, 32, 48)


def test_lossy_files_need_consent(folder, photos):
    Image.fromarray(photos[0].permute(1, 2, 0).numpy()).save(folder / "0009.jpg")
    assert len(load_folder(folder).names) == 6
    found = load_folder(folder, lossy=True)
    assert len(found.names) == 7
    assert "compression" in found.warnings[0]


def test_too_few_images(tmp_path):
    with pytest.raises(UserError, match="holds 0 images"):
        load_folder(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"holds 1 images .* at least 16 needed"):
        load_folder(tmp_path, minimum=16)
    with pytest.raises(UserError, match="not a folder"):
        load_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 16, 16), "are float32, expected uint8"),
        (torch.full((2, 3, 16, 16), float("nan")), "1536 NaN values, first in image 0"),
        (torch.full((2, 3, 16, 16), float("inf")), "infinite"),
        (torch.zeros(2, 1, 16, 16).byte(), r"shape \(2, 1, 16, 16\)"),
        (torch.zeros(3, 16, 16).byte(), "shape"),
        (torch.zeros(0, 3, 16, 16).byte(), "there are no test images"),
        (torch.zeros(2, 3, 4, 16).byte(), "16x4"),
    ],
)
def test_tensors_off_the_contract(images, message):
    with pytest.raises(BadImages, match=message):
        check_images(images, "test")
    with pytest.raises(ValueError, match=message):
        check_images(images, "test")


def test_to_uint8_rounds_clips_and_refuses_nan():
    x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]).expand(1, 3, 1, 5)
    assert to_uint8(x)[0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(BadImages, match="NaN"):
        to_uint8(x * float("nan"))
    with pytest.raises(BadImages, match="floating"):
        to_uint8(x.to(torch.uint8))


def test_chunks_cover_all_images_once():
    for shape in ((200, 3, 8, 8), (7, 3, 1024, 1024), (1, 3, 64, 64)):
        images = torch.empty(shape, dtype=torch.uint8)
        seen = [i for part in chunks(images) for i in range(shape[0])[part]]
        assert seen == list(range(shape[0]))
