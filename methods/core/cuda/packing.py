"""Weights as the CUDA kernels read them: one row of bytes per output channel.

The products of an output run over K in the order (kernel row, kernel column, channel).  K is cut
into equal *segments*, and a byte holds codes of the same place in different segments, so that
shifting a whole tile of bytes gives a tile of codes: no lane ever has to hand a code to another.

A width is the sum of *planes* of 8, 4, 2 and 1 bits (3 = 2 + 1), most significant first.  A plane
of ``w`` bits over ``S`` segments takes ``S * w / 8`` runs of one segment's bytes; segment ``s``
lies in run ``s % runs``, at bit ``w * (s // runs)``.  Codes are in two's complement.
"""

import torch
from torch import Tensor

_ALIGNMENTS = (16, 8)
_SLACK = 1.05


def planes(bits: int) -> tuple[int, ...]:
    """Widths of the planes of a code, most significant first."""
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def segments(bits: int) -> int:
    """Number of segments of K: the number of codes of the narrowest plane in a byte."""
    return 8 // planes(bits)[-1]


def segment_length(depth: int, bits: int) -> int:
    """Number of codes in a segment, padded for aligned loads where this adds at most 5 % bytes.

    Args:
        depth: products per output.
        bits: width of a code.

    Returns:
        A multiple of 16, 8 or 4.
    """
    count = segments(bits)
    for alignment in _ALIGNMENTS:
        length = -(-depth // (count * alignment)) * alignment
        if length * count <= _SLACK * depth:
            return length
    return -(-depth // (count * 4)) * 4


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Packs signed codes.

    Args:
        codes: int8 ``(out, depth)``.
        bits: width of a code, 1 to 8.

    Returns:
        uint8 ``(out, bits * segments / 8 * segment_length)``; padding decodes to 0.
    """
    out, depth = codes.shape
    count, length = segments(bits), segment_length(depth, bits)
    padded = torch.nn.functional.pad(codes, (0, count * length - depth))
    field = padded.view(out, count, length).to(torch.int16) & ((1 << bits) - 1)
    runs, rest = [], bits
    for width in planes(bits):
        rest -= width
        part = ((field >> rest) & ((1 << width) - 1)).view(out, 8 // width, -1, length)
        byte = torch.zeros_like(part[:, 0])
        for place in range(8 // width):
            byte |= part[:, place] << (width * place)
        runs.append(byte.flatten(1))
    return torch.cat(runs, dim=1).to(torch.uint8)


def unpack_rows(rows: Tensor, bits: int, depth: int) -> Tensor:
    """Inverse of :func:`pack_rows`.

    Args:
        rows: uint8, from :func:`pack_rows`.
        bits: width of a code.
        depth: products per output.

    Returns:
        int8 ``(out, depth)``.
    """
    out = rows.shape[0]
    count = segments(bits)
    length = rows.shape[1] * 8 // (bits * count)
    value = torch.zeros(out, count, length, dtype=torch.int16, device=rows.device)
    start = 0
    for width in planes(bits):
        size = count * width // 8 * length
        run = rows[:, start : start + size].view(out, 1, -1, length).to(torch.int16)
        move = torch.arange(0, 8, width, dtype=torch.int16, device=rows.device).view(-1, 1, 1)
        part = (run >> move) & ((1 << width) - 1)
        value = (value << width) | part.reshape(out, count, length)
        start += size
    sign = 1 << (bits - 1)
    return ((value ^ sign) - sign).reshape(out, -1)[:, :depth].to(torch.int8).contiguous()


def depth_major(codes: Tensor) -> Tensor:
    """Reshapes codes ``(out, in / groups[, kh, kw])`` to ``(out, kh * kw * in / groups)``."""
    return codes if codes.dim() == 2 else codes.permute(0, 2, 3, 1).flatten(1)


def weight_shaped(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inverse of :func:`depth_major` for a weight of ``shape``."""
    if len(shape) == 2:
        return rows
    out, channels, height, width = shape
    return rows.view(out, height, width, channels).permute(0, 3, 1, 2).contiguous()
