"""Stores tensors while a sampler runs: equal ones once, on disk beyond a memory limit."""

import hashlib
import math
import tempfile
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from quantarena.methods.core.record.points import raw_bytes


class Spool:
    """Stores tensors by content, so that equal tensors take room once.

    Args:
        limit: bytes to hold in memory; beyond that everything moves to a file, which is deleted
            with this object.
        folder: folder of that file; None for that of temporary files.
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self.limit, self.folder = limit, folder
        self.bytes = 0
        self._known: dict[tuple[bytes, torch.dtype, tuple[int, ...]], int] = {}
        self._places: list[tuple[int, torch.dtype, tuple[int, ...]]] = []
        self._in_memory: list[Tensor] = []
        self._file: IO[bytes] | None = None

    @property
    def spilled(self) -> bool:
        """Whether the tensors moved to disk."""
        return self._file is not None

    def put(self, tensor: Tensor) -> int:
        """Store a copy on the CPU; returns its number, which is the same for equal tensors.

        Raises:
            OSError: the disk is full.
        """
        value = tensor.detach().cpu().contiguous()
        data = raw_bytes(value)
        shape = tuple(value.shape)
        key = (hashlib.sha256(data).digest(), value.dtype, shape)
        if key in self._known:
            return self._known[key]
        number = self._known[key] = len(self._places)
        self._places.append((self.bytes, value.dtype, shape))
        self.bytes += data.nbytes
        if self._file is None and self.bytes > self.limit:
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
            for stored in self._in_memory:
                self._file.write(raw_bytes(stored))
            self._in_memory.clear()
        if self._file is None:
            self._in_memory.append(value.clone())
        else:
            self._file.write(data)
        return number

    def kind(self, number: int) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of the tensor with this number."""
        _, dtype, shape = self._places[number]
        return dtype, shape

    def get(self, number: int) -> Tensor:
        """The tensor with this number; it must not be written to."""
        if self._file is None:
            return self._in_memory[number]
        offset, dtype, shape = self._places[number]
        data = bytearray(math.prod(shape) * dtype.itemsize)
        self._file.seek(offset)
        self._file.readinto(data)  # type: ignore[attr-defined]
        self._file.seek(0, 2)
        return (
            torch.frombuffer(data, dtype=dtype).reshape(shape)
            if data
            else torch.empty(shape, dtype=dtype)
        )
