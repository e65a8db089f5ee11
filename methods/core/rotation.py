"""An orthogonal rotation of channels that spreads each over all others, fast at any width.

For K = 2^a * m with m odd, the matrix is the Kronecker product of the discrete Hartley matrix of
order m, ``cos(2 pi i j / m) + sin(2 pi i j / m)``, and the Walsh-Hadamard matrix of order 2^a,
divided by sqrt(K). It is symmetric and its own inverse, and no entry exceeds sqrt(2 / K). So every
width has a rotation over all channels; a table of known Hadamard matrices, as in QuaRot (Ashkboos
et al., NeurIPS 2024, arXiv:2404.00456), has gaps, and blocks of the largest power of two would keep
an outlier inside its block.

One row costs a * K additions and, where m > 1, m * K multiply-adds. All arithmetic is float32, one
operation at a time in a fixed order, so a row's result depends neither on its batch nor on whether
torch or the native kernel computes it.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor


def factors(channels: int) -> tuple[int, int]:
    """The odd factor and the power of two whose product is the number of channels.

    Raises:
        ValueError: no channels.
    """
    if channels < 1:
        raise ValueError(f"{channels} channels cannot be rotated")
    size = channels & -channels
    return channels // size, size


@lru_cache(maxsize=64)
def hartley(order: int) -> Tensor:
    """The discrete Hartley matrix, (order, order) float32; its square is ``order`` times one."""
    index = torch.arange(order)
    turn = (index[:, None] * index % order).double() * (2 * math.pi / order)
    return (turn.cos() + turn.sin()).float()


def rotate(x: Tensor) -> Tensor:
    """The rows of ``x`` times the matrix, without its division by sqrt(K).

    Args:
        x: (..., K), floating point.

    Returns:
        (..., K), in the type of ``x``.

    Raises:
        ValueError: no channels.
    """
    order, size = factors(x.shape[-1])
    y = x.reshape(-1, size)
    for _ in range(size.bit_length() - 1):  # the highest bit of the index first, as in the kernel
        low, high = y[:, : size // 2], y[:, size // 2 :]
        y = torch.stack((low + high, low - high), 2).flatten(1)
    if order > 1:
        rows, table = y.reshape(-1, order, size), hartley(order).to(x)
        total = rows[:, :1] * table[:, :1]
        for j in range(1, order):
            total = total + rows[:, j : j + 1] * table[:, j : j + 1]
        y = total
    return y.reshape(x.shape)


def additions(channels: int) -> int:
    """Additions and multiply-adds that one row costs, multipliers of channels included."""
    order, size = factors(channels)
    return channels * (size.bit_length() - 1 + (order if order > 1 else 0) + 1)
