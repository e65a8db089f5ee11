"""Label tensors: each value of an activation has the number of the channel that it belongs to.

Labels are repeated over images and positions by stride 0, so they take hardly any memory.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def channelwise(numbers: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """Labels of a tensor of ``shape`` whose channels along ``axis`` have these numbers."""
    axis %= len(shape)
    return numbers.reshape(-1, *[1] * (len(shape) - 1 - axis)).expand(tuple(shape))


def unique(labels: Tensor) -> list[int]:
    """The numbers that occur."""
    found: list[int] = torch.unique(_short(labels)).tolist()
    return found


def pairs(one: Tensor, other: Tensor) -> list[tuple[int, int]]:
    """The pairs of numbers that occur at one place of two label tensors of one shape."""
    for axis in range(one.dim()):
        if one.stride(axis) == 0 == other.stride(axis) and one.shape[axis]:
            one, other = one.narrow(axis, 0, 1), other.narrow(axis, 0, 1)
    both = torch.unique((one.long() << 32) + other).tolist()
    return [(pair >> 32, pair & 0xFFFFFFFF) for pair in both]


def constant_along(labels: Tensor, axis: int) -> bool:
    """Whether the labels do not change along ``axis``."""
    if labels.stride(axis) == 0 or labels.shape[axis] < 2:
        return True
    first = labels.narrow(axis, 0, 1)
    return bool((labels == first).all())


def by_channel(labels: Tensor, axis: int) -> Tensor | None:
    """The number of each channel along ``axis``, (C,); None where positions differ."""
    rows = _short(labels.movedim(axis, -1), keep=1).reshape(-1, labels.shape[axis])
    return rows[0] if bool((rows == rows[0]).all()) else None


def _short(labels: Tensor, keep: int = 0) -> Tensor:
    """The labels without their repetitions, but for the last ``keep`` axes."""
    for axis in range(labels.dim() - keep):
        if labels.stride(axis) == 0 and labels.shape[axis]:
            labels = labels.narrow(axis, 0, 1)
    return labels
