"""The reader of scores files against numpy's own, and what it refuses."""

import io
import zipfile

import numpy as np
import pytest

from quantarena.bench.scores import read_scores


def test_it_reads_what_numpy_reads(tmp_path):
    path = tmp_path / "a.npz"
    rng = np.random.default_rng(0)
    arrays = {
        "lpips/alex-v0.1": rng.random(32),
        "floor:x": rng.random(5).astype(np.float32),
        "unit:prompt": np.arange(32),
        "curve:y": np.asfortranarray(rng.random((4, 3))),
        "empty": np.empty(0),
        "number": np.array(2.5),
        "big:endian": rng.random(4).astype(">f8"),
    }
    np.savez(path, **arrays)
    found = read_scores(path)
    assert list(found) == list(arrays)
    for name, values in arrays.items():
        assert np.array_equal(found[name], values)
        assert found[name].dtype == np.float64
    found["number"][...] = 3.0  # its own memory, which may be written
    np.savez_compressed(path, **arrays)
    assert np.array_equal(read_scores(path)["curve:y"], arrays["curve:y"])


@pytest.mark.parametrize("place", [40, 200, -30, -60])
def test_a_changed_byte_is_never_a_number(tmp_path, place):
    """Content has a checksum, and what the short way does not understand goes the long way."""
    path = tmp_path / "a.npz"
    np.savez(path, psnr=np.arange(16.0), ssim=np.ones(3))
    data = bytearray(path.read_bytes())
    data[place] ^= 0x41
    path.write_bytes(data)
    try:
        found = read_scores(path)
    except ValueError:
        return
    with np.load(path) as numpy_reads:
        assert list(found) == numpy_reads.files
        for name in found:
            assert np.array_equal(found[name], numpy_reads[name])


def test_an_archive_with_something_before_or_behind_it_is_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, psnr=np.arange(4.0))
    whole = path.read_bytes()
    path.write_bytes(b"#!/bin/sh\n" + whole)
    assert np.array_equal(read_scores(path)["psnr"], np.arange(4.0))
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"made by hand"
        archive.writestr("psnr.npy", whole[whole.index(b"\x93NUMPY") :][: 128 + 32])
    assert np.array_equal(read_scores(path)["psnr"], np.arange(4.0))


def member(tmp_path, data, name="x.npy"):
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)
    return path


def npy(values, version=(1, 0)):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, version=version, allow_pickle=True)
    return stream.getvalue()


def test_a_later_version_of_the_format_is_read(tmp_path):
    path = member(tmp_path, npy(np.arange(3.0), version=(2, 0)))
    assert np.array_equal(read_scores(path)["x"], [0, 1, 2])


@pytest.mark.parametrize(
    "data",
    [
        npy(np.array([{}], dtype=object)),
        npy(np.array([{}], dtype=object), version=(2, 0)),
        npy(np.arange(8.0))[:-8],
        npy(np.arange(8.0))[:40],
        npy(np.array([1.0, np.inf])),
        npy(np.array(["a"])),
        b"",
        b"no array",
    ],
    ids=["objects", "objects-2", "short", "header", "infinite", "text", "empty", "foreign"],
)
def test_what_is_no_array_of_numbers_is_refused_in_one_line(tmp_path, data):
    with pytest.raises(ValueError, match=r"\S") as error:
        read_scores(member(tmp_path, data))
    assert "\n" not in str(error.value)
