"""Damaged score files: their contestants are unranked with the reason, the others are ranked."""

import io
import os
import zipfile

import damage
import numpy as np
import pytest

from quantarena.bench import scores
from quantarena.bench.scores import UNITS, read_scores


def packed(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def member(content, method=zipfile.ZIP_STORED):
    """An archive with one member ``psnr.npy`` of any content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("psnr.npy", content)
    return buffer.getvalue()


def header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def huge():
    """A small file of many zeros, more than any scores."""
    return member(b"\0" * (scores.MOST_BYTES + 1), zipfile.ZIP_DEFLATED)


BAD = {
    "empty": b"",
    "text": b"not a zip",
    "empty zip": b"PK\x05\x06" + b"\0" * 18,
    "one array": member(b""),
    "no array": member(b"\0" * 64),
    "huge shape": member(header("{'descr': '<f8', 'fortran_order': False, 'shape': (10**15,), }")),
    "no shape": member(header("{'descr': '<f8', 'fortran_order': False, 'shape': (1e9, 'x'), }")),
    "deep header": member(header("[" * 5000)),
    "objects": packed(psnr=np.array([{}, None], dtype=object)),
    "texts": packed(psnr=np.array(["a", "b"])),
    "records": packed(psnr=np.zeros(3, dtype=[("a", "f8"), ("b", "i4")])),
    "infinity": packed(psnr=np.array([1.0, np.inf])),
    "prompts": packed(**{UNITS: np.array([np.nan]), "psnr": np.ones(1)}),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_archives_are_one_line(kind, tmp_path, tried):
    (tmp_path / "s.npz").write_bytes(BAD[kind])
    tried("scores")
    if kind == "empty zip":
        assert read_scores(tmp_path / "s.npz") == {}
        return
    with pytest.raises(ValueError, match=r"\w") as caught:
        read_scores(tmp_path / "s.npz")
    assert "\n" not in str(caught.value)


def test_an_archive_that_unpacks_to_too_much(tmp_path, tried):
    (tmp_path / "s.npz").write_bytes(huge())
    with pytest.raises(ValueError, match="more than any scores"):
        read_scores(tmp_path / "s.npz")
    tried("scores")


@pytest.mark.parametrize("kind", damage.NOT_FILES)
def test_no_regular_file(kind, tmp_path, tried):
    damage.not_a_file(tmp_path / "s.npz", kind)
    with pytest.raises(ValueError, match=r"regular file|symbolic links"):
        read_scores(tmp_path / "s.npz")
    tried("scores")


def test_any_byte(tmp_path, tried):
    """A damaged archive is refused, or holds what it held: no other number comes out."""
    whole = packed(psnr=np.linspace(20, 30, 16), **{"lpips/alex-v0.1": np.linspace(0, 1, 16)})
    (tmp_path / "s.npz").write_bytes(whole)
    right = read_scores(tmp_path / "s.npz")
    for bad in [*damage.cut(whole, 60), *damage.flipped(whole, 200)]:
        (tmp_path / "s.npz").write_bytes(bad)
        tried("scores")
        try:
            values = read_scores(tmp_path / "s.npz")
        except ValueError:
            continue
        for name in set(values) & set(right):
            assert np.array_equal(values[name], right[name])


def test_the_others_are_ranked(done, survives, real_page, tried):
    row = next(r for r in done.rows() if (r.cell.method, r.cell.bits) == ("rtn", "w4a4"))
    file = done.results / "smoke" / row.artefacts["scores"]
    for content in [*BAD.values(), packed(psnr=np.ones(3)), packed(psnr=np.full(16, np.nan))]:
        file.write_bytes(content)
        _, ranking, _ = survives("rank", "smoke", codes=(0,))
        assert len(ranking["boards"][0]["standings"]) >= 3
        tried("scores")
    file.write_bytes(b"not a zip")
    _, ranking, _ = survives("rank", "smoke", codes=(0,))
    reason = ranking["boards"][0]["unranked"]["rtn@w4a4"]
    assert reason == "its scores file cannot be read (File is not a zip file): run the cell again"
    survives("render", "smoke", codes=(0,))
    assert reason in (done.results / "smoke/leaderboard.html").read_text("utf-8")
    code, _, err = survives("compare", "rtn@w4a4", "rtn@w4a8")
    assert (code, "cannot be read" in err) == (2, True)
    os.unlink(file)
    os.mkfifo(file)
    survives("render", "smoke", codes=(0,))
    assert survives("compare", "rtn@w4a4", "rtn@w4a8")[0] == 2
