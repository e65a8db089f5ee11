"""Tensors with one row a calibration point, gathered chunk by chunk, in memory or in files."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.nested import map_tensors, tensors


def mapped(shape: Sequence[int], dtype: torch.dtype, folder: Path) -> Tensor:
    """An empty tensor whose memory is a file: the system writes it out when memory is short.

    The file has no name any more, so it goes away with the tensor, whatever happens.
    """
    handle, path = tempfile.mkstemp(dir=folder, suffix=".rows")
    os.close(handle)
    size = 1
    for length in shape:
        size *= length
    if not size:
        os.unlink(path)
        return torch.empty(tuple(shape), dtype=dtype)
    flat = torch.from_file(path, shared=True, size=size, dtype=dtype)
    os.unlink(path)
    return flat.reshape(tuple(shape))


def gathered(chunks: Sequence[Tensor], folder: Path | None) -> Tensor:
    """All chunks' rows in one tensor; in a file where there is a folder."""
    if folder is None:
        return chunks[0] if len(chunks) == 1 else torch.cat(list(chunks))
    count = sum(len(chunk) for chunk in chunks)
    result = mapped((count, *chunks[0].shape[1:]), chunks[0].dtype, folder)
    start = 0
    for chunk in chunks:
        result[start : start + len(chunk)] = chunk
        start += len(chunk)
    return result


Given = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


class Arrival:
    """What arrives at one block on all points, from which any rows can be drawn.

    Args:
        block: name, for messages.
        chunks: arguments of the block for consecutive chunks of points.
        sizes: points in each chunk.
        folder: where rows live in files; None keeps them in memory.

    Attributes:
        nbytes: of the rows.

    Raises:
        Unsupported: an argument is not the same for all points and has not one row a point.
    """

    def __init__(
        self, block: str, chunks: Sequence[Given], sizes: Sequence[int], folder: Path | None
    ) -> None:
        self.block, self.nbytes = block, 0
        self._given = chunks[0]
        self._rows: list[Tensor | None] = []  # by place in the arguments; None where shared
        places = zip(*(tensors(chunk, block) for chunk in chunks), strict=True)
        for place in places:
            if all(t.dim() and len(t) == n for t, n in zip(place, sizes, strict=True)):
                rows = gathered(place, folder)
                self.nbytes += rows.nbytes
                self._rows.append(rows)
            elif all(torch.equal(place[0], other) for other in place[1:]):
                self._rows.append(None)
            else:
                raise Unsupported(
                    f"{block}: an argument of shape {tuple(place[0].shape)} differs between "
                    "calibration points and has not one row for each"
                )

    @property
    def stream(self) -> Tensor:
        """Rows of the first argument that has them: what the block transforms."""
        found = next((rows for rows in self._rows if rows is not None), None)
        if found is None:
            raise Unsupported(f"{self.block}: no argument has one row for each calibration point")
        return found

    def at(self, index: Tensor, stream: Tensor | None = None) -> Given:
        """Arguments for some points; the stream may be replaced."""
        turn = iter(self._rows)
        own = self.stream

        def pick(tensor: Tensor) -> Tensor:
            rows = next(turn)
            if rows is None:
                return tensor
            return stream if stream is not None and rows is own else rows[index]

        args, kwargs = map_tensors(self._given, pick, self.block)
        return tuple(args), dict(kwargs)
