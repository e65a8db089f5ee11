"""The signature of a range search, and ranges of channels that differ in width.

A range search is a function from a tensor to scale and zero point. ``axis=None`` gives one range
for the whole tensor, ``axis=0`` one for each leading index (the output channel of a weight). The
searches themselves are in ``techniques/ranges``.
"""

from typing import Protocol

import torch
from torch import Tensor

from quantarena.methods.core.affine import QuantParams


class RangeSearch(Protocol):
    """The signature of every range search."""

    def __call__(
        self, x: Tensor, bits: int, *, axis: int | None = None, symmetric: bool = False
    ) -> QuantParams:
        """Scale and zero point for ``x``."""
        ...


def mixed_range(
    search: RangeSearch, x: Tensor, widths: Tensor, *, axis: int = 0, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """Ranges of channels that differ in width: one search for each distinct width.

    Args:
        search: the range search.
        x: any shape.
        widths: bits of each channel, (x.shape[axis],) integers of 1 to 8.
        axis: the axis that holds the channels.
        symmetric: zero point fixed in the middle of each channel's codes.

    Returns:
        Scale and zero point, float32, which broadcast over ``x``.

    Raises:
        ValueError: what ``search`` refuses, or widths that do not fit the tensor.
    """
    if widths.shape != (x.shape[axis],):
        raise ValueError(f"{tuple(widths.shape)} widths do not fit {x.shape[axis]} channels")
    distinct = sorted({int(width) for width in widths})
    if not all(1 <= width <= 8 for width in distinct):
        raise ValueError(f"channels have 1 to 8 bits, not {distinct}")
    shape = [1] * x.dim()
    shape[axis] = x.shape[axis]
    scale = torch.empty(shape, device=x.device)
    zero_point = torch.empty(shape, device=x.device)
    for width in distinct:
        index = (widths == width).nonzero().flatten().to(x.device)
        params = search(x.index_select(axis, index), width, axis=axis, symmetric=symmetric)
        scale.index_copy_(axis, index, params.scale)
        zero_point.index_copy_(axis, index, params.zero_point)
    return scale, zero_point
