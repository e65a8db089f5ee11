"""Safetensors files that may exceed memory: written piece by piece, read by mapping."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from quantarena.methods.core.record.points import raw_bytes

_NAMES = {
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A tensor given in pieces.

    Attributes:
        dtype: type of every piece.
        shape: shape of the whole tensor.
        pieces: tensors whose values, one after the other, make up the whole; read once.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterable[Tensor]

    @property
    def bytes(self) -> int:
        """Size of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """The whole tensor, in memory."""
        return torch.cat([piece.reshape(-1) for piece in self.pieces]).reshape(self.shape)


def write(path: Path, columns: Mapping[str, Column], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, holding one piece in memory at a time.

    Equal content gives equal bytes.

    Raises:
        ValueError: pieces do not make up their column, or such files have no such type.
        OSError: the disk is full.
    """
    # the widest types come first, which keeps every tensor aligned
    order = sorted(columns, key=lambda name: (-columns[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        column = columns[name]
        if column.dtype not in _NAMES:
            raise ValueError(f"{name} is {column.dtype}, which cannot be stored")
        end = offset + column.bytes
        kind = _NAMES[column.dtype]
        header[name] = {"dtype": kind, "shape": column.shape, "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, sort_keys=True).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in order:
            column, written = columns[name], 0
            for piece in column.pieces:
                if piece.dtype != column.dtype:
                    raise ValueError(f"{name} is {column.dtype}, a piece of it is {piece.dtype}")
                written += file.write(raw_bytes(piece))
            if written != column.bytes:
                raise ValueError(f"{name} has {written} bytes, {column.shape} takes {column.bytes}")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a safetensors file.

    Tensors are mapped: a value is read from disk when it is used. Writing to a tensor does not
    change the file.

    Raises:
        Exception: any error of ``safetensors`` about a damaged file.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}
