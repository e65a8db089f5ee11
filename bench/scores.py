"""The scores file of a row: an npz archive of numbers by image, and the names of its arrays.

An array under a metric's own name, such as ``lpips/alex-v0.1``, holds one number per image, (N,).
Metrics of a whole set of images, such as KID, have no such array. Everything else that the file
holds has a prefix with a colon, which no metric's name contains.
"""

import functools
import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantarena.bench.errors import one_line
from quantarena.bench.files import require_regular

UNITS = "unit:prompt"
"""The prompt of each image as a number, (N,); absent where images have no prompts."""
REPLICATES = "replicates:"
"""Prefix of a metric of a whole set: its bootstrap values, (B,)."""
FLOOR = "floor:"
"""Prefix of a fidelity metric, (n,): full precision with bfloat16 weights against full precision.

Only full precision's own file has it."""
FLOOR_SEED = "floor-seed:"
"""Prefix of a fidelity metric, (n,): full precision with another seed against full precision.

Only full precision's own file has it."""
MOST_BYTES = 1 << 28
"""Largest size of all arrays of a file, which a damaged or hostile file may exceed at will."""
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4sL2H4x3L3H8xL")
_LOCAL = struct.Struct("<4s22x2H")
"""Records of a zip archive: its end, an entry of its table, and the head of a file."""
_MAGIC = b"\x93NUMPY\x01\x00"
CURVE = "curve:"
"""Prefix of a metric that has a value at each sampler call, (S, n)."""


def is_metric(name: str) -> bool:
    """True for the name of an array that holds one number per image of a metric."""
    return ":" not in name


def read_scores(path: Path) -> dict[str, NDArray[np.float64]]:
    """Every array of a scores file, in the order of the file.

    Raises:
        ValueError: the file is absent or damaged; one line says how.
    """
    try:
        require_regular(path, path)
        members = _stored(path)
        scores = {
            name.removesuffix(".npy"): _array(data)
            for name, data in (_unzipped(path) if members is None else members)
        }
    except OSError as error:
        raise ValueError(error.strerror or one_line(error)) from None
    except Exception as error:  # readers of archives raise many types on damaged bytes
        raise ValueError(str(error) or one_line(error)) from None
    for name, values in scores.items():
        _check(name, values)
    return scores


def _unzipped(path: Path) -> list[tuple[str, bytes]]:
    """Name and content of each file in any zip archive."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        if size > MOST_BYTES:
            raise ValueError(f"it holds {size} bytes, more than any scores")
        return [(member.filename, archive.read(member)) for member in members]


def _stored(path: Path) -> list[tuple[str, bytes]] | None:
    """Name and content of each file in an archive as ``numpy.savez`` writes it, uncompressed.

    ``zipfile`` takes ten times as long, and a page reads thousands of these. None where the archive
    is another one or is damaged: ``zipfile`` reads it then, or says what is wrong.
    """
    if path.stat().st_size > MOST_BYTES:
        return None
    data = path.read_bytes()
    if len(data) < _END.size:
        return None
    mark, disk, first, here, count, _, place, comment = _END.unpack_from(
        data, len(data) - _END.size
    )
    if mark != b"PK\5\6" or disk or first or here != count or comment:
        return None
    found, held = [], 0
    for _ in range(count):
        if place + _ENTRY.size > len(data):
            return None
        entry = _ENTRY.unpack_from(data, place)
        mark, _, flags, method, crc, packed, size, named, extra, said, start = entry
        where = place + _ENTRY.size
        name = data[where : where + named]
        place = where + named + extra + said
        if mark != b"PK\1\2" or flags or method or packed != size or not name.isascii():
            return None
        if start + _LOCAL.size > len(data):
            return None
        mark, named_here, extra_here = _LOCAL.unpack_from(data, start)
        begin = start + _LOCAL.size
        first_byte = begin + named_here + extra_here
        content = data[first_byte : first_byte + size]
        same = data[begin : begin + named_here] == name
        held += len(content)  # two entries of the table may name the same bytes
        if held > MOST_BYTES:
            return None
        if mark != b"PK\3\4" or not same or len(content) != size or zlib.crc32(content) != crc:
            return None
        found.append((name.decode(), content))
    return found


def _array(data: bytes) -> NDArray[np.float64]:
    """The array of an npy file.

    Most arrays of a run have the same header, and a header takes longer to read than its numbers.
    """
    if data[:8] != _MAGIC:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        return np.asarray(array, dtype=np.float64)
    start = len(_MAGIC) + 2 + int.from_bytes(data[8:10], "little")
    shape, by_columns, kind = _header(data[:start])
    if kind.hasobject:
        raise ValueError("it holds Python objects, not numbers")
    if math.prod(shape) * 8 > MOST_BYTES:
        raise ValueError(f"it holds {math.prod(shape)} numbers, more than any scores")
    array = np.frombuffer(data, kind, math.prod(shape), start)
    return np.array(array.reshape(shape, order="F" if by_columns else "C"), dtype=np.float64)


@functools.lru_cache(maxsize=256)
def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type from the start of an npy file of version 1.0."""
    return np.lib.format.read_array_header_1_0(io.BytesIO(data[len(_MAGIC) :]))


def _check(name: str, values: NDArray[np.float64]) -> None:
    """Raise ValueError for values that no metric writes."""
    if np.isinf(values).any():
        raise ValueError(f"{name} holds an infinite number")
    if name == UNITS and not np.isfinite(values).all():
        raise ValueError(f"{name} holds a number that is not finite")
