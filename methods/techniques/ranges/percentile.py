"""Percentile range searches: ranges that clip a fixed share of the values."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quantarena.methods.core.affine import QuantParams, affine_params
from quantarena.methods.techniques.ranges.rows import (
    best_of,
    blockwise,
    minmax_rows,
)


def _quantiles(rows: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """Order statistics (R, 1) that clip a share ``1 - keep`` of the row at each end."""
    if not 0.5 < keep <= 1.0:
        raise ValueError(f"keep must be above 0.5 and at most 1, not {keep}")
    count = rows.shape[1]
    rank = min(count, max(1, math.ceil(keep * count)))
    high = rows.kthvalue(rank, dim=1, keepdim=True).values
    low = rows.kthvalue(count + 1 - rank, dim=1, keepdim=True).values
    return torch.minimum(low, high), high


def percentile_range(
    x: Tensor, bits: int, *, axis: int | None = None, symmetric: bool = False, keep: float = 0.999
) -> QuantParams:
    """The range that clips a share ``1 - keep`` of the values at each end.

    Nothing is clipped in rows of fewer than ``1 / (1 - keep)`` values.

    Args:
        x: any shape; parameters broadcast over it, with ``x.shape[axis]`` entries.
        bits: 1 to 8.
        axis: None for one range, else one for each index into that axis.
        symmetric: zero point fixed in the middle of the codes.
        keep: share of the values below the upper end, above 0.5; 1.0 is min-max.

    Raises:
        ValueError: empty tensor, NaN or infinity (also where they would be clipped).
    """

    def search(rows: Tensor) -> QuantParams:
        minmax_rows(rows, bits, symmetric)
        return affine_params(*_quantiles(rows, keep), bits, symmetric)

    return blockwise(x, axis, search)


def percentile_mse_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    keeps: Sequence[float] = (0.999, 0.9999, 0.99999),
    norm: float = 2.0,
) -> QuantParams:
    """The percentile or min-max range with the smallest error (RepQ-ViT, Li et al., ICCV 2023).

    Args:
        x: any shape; parameters broadcast over it, with ``x.shape[axis]`` entries.
        bits: 1 to 8.
        axis: None for one range, else one for each index into that axis.
        symmetric: zero point fixed in the middle of the codes.
        keeps: candidates for ``keep`` of ``percentile_range``.
        norm: exponent of the error.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """

    def search(rows: Tensor) -> QuantParams:
        plain = minmax_rows(rows, bits, symmetric)
        low, high = zip(*(_quantiles(rows, keep) for keep in keeps), strict=True)
        candidates = affine_params(torch.cat(low, dim=1), torch.cat(high, dim=1), bits, symmetric)
        return best_of(rows, plain, candidates, norm)

    return blockwise(x, axis, search)
