"""Tensors with one row for each calibration point, gathered from chunks, in memory or in files."""

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
    """Make an empty tensor whose memory is a file.

    The system writes it out when memory is short. The file is unlinked at once, so it disappears
    with the tensor, whatever happens.
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
    """Join the rows of all chunks into one tensor; in a file where a folder is given."""
    if folder is None:
        return chunks[0] if len(chunks) == 1 else torch.cat(list(chunks))
    count = sum(len(chunk) for chunk in chunks)
    result = mapped((count, *chunks[0].shape[1:]), chunks[0].dtype, folder)
    start = 0
    for chunk in chunks:
        result[start : start + len(chunk)] = chunk
        start += len(chunk)
    return result


CallArguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call."""


def _has_rows(tensor: Tensor, points: int) -> bool:
    return bool(tensor.dim()) and len(tensor) == points


def _folds(place: Sequence[Tensor], sizes: Sequence[int]) -> bool:
    """Whether the tensors have the same number of rows, more than one, for each of their points."""
    if not all(t.dim() > 1 and len(t) % n == 0 for t, n in zip(place, sizes, strict=True)):
        return False
    counts = {len(t) // n for t, n in zip(place, sizes, strict=True)}
    return len(counts) == 1 and min(counts) > 1


class BlockInputs:
    """Arguments of one block at all points, from which those of any points can be drawn.

    Args:
        block: name of the block, for messages.
        chunks: arguments of the block for consecutive chunks of points.
        sizes: points in each chunk.
        folder: where rows live in files; None keeps them in memory.

    A block may receive the rows of all points in one axis, as a text projection does: (N * L, C).
    Where no argument has a row for each point, the first whose rows can be shared out evenly among
    the points is the stream; it is held as (N, L, C).

    Attributes:
        nbytes: size of all rows.
        folded: whether the stream had several rows for each point in its first axis.

    Raises:
        Unsupported: an argument differs between points but has not one row for each.
    """

    def __init__(
        self, block: str, chunks: Sequence[CallArguments], sizes: Sequence[int], folder: Path | None
    ) -> None:
        self.block, self.nbytes = block, 0
        self._arguments = chunks[0]
        self._rows: list[Tensor | None] = []  # by place in the arguments; None where shared
        places = list(zip(*(tensors(chunk, block) for chunk in chunks), strict=True))
        by_row = [all(map(_has_rows, place, sizes)) for place in places]
        self.folded = not any(by_row)
        folded = next((i for i, place in enumerate(places) if _folds(place, sizes)), None)
        for number, place in enumerate(places):
            if self.folded and number == folded:
                place = tuple(t.unflatten(0, (n, -1)) for t, n in zip(place, sizes, strict=True))
            if all(map(_has_rows, place, sizes)):
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
        """The stream that the block changes: rows of the first argument that has one per point."""
        stream = next((rows for rows in self._rows if rows is not None), None)
        if stream is None:
            raise Unsupported(f"{self.block}: no argument has one row for each calibration point")
        return stream

    def at(self, index: Tensor, stream: Tensor | None = None) -> CallArguments:
        """Arguments of the block at some points; ``stream`` replaces the rows of the stream."""
        remaining = iter(self._rows)
        replaced = self.stream

        def pick(tensor: Tensor) -> Tensor:
            rows = next(remaining)
            if rows is None:
                return tensor
            picked = stream if stream is not None and rows is replaced else rows[index]
            picked = picked.to(tensor.device)  # files of rows are on the host
            return picked.flatten(0, 1) if self.folded else picked

        args, kwargs = map_tensors(self._arguments, pick, self.block)
        return tuple(args), dict(kwargs)
