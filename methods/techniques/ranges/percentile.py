"""Percentile range searches: ranges that clip a fixed share of the values."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantarena.methods.core.affine import QuantParams, affine_params
from quantarena.methods.techniques.ranges.mse import ACT_NORM
from quantarena.methods.techniques.ranges.rows import (
    best_of,
    blockwise,
    minmax_rows,
)


def quantile(rows: Tensor, share: float, weights: Tensor | None = None) -> Tensor:
    """The value below which a share of each row (R, N) lies, (R, 1), interpolated linearly.

    Args:
        rows: the values.
        share: in [0, 1]; 0 is the smallest value, 1 the largest.
        weights: number of values that each value stands for, (R, N); 1 by default.
    """
    if weights is None:
        place = share * (rows.shape[1] - 1)
        below = int(place)
        above = min(below + 1, rows.shape[1] - 1)
        low, high = (rows.kthvalue(k + 1, dim=1, keepdim=True).values for k in (below, above))
        return torch.lerp(low, high, place - below)
    values, order = rows.sort(dim=1)
    reach = weights.double().gather(1, order).cumsum(1)
    places = share * (reach[:, -1:] - 1)
    # the value at each integer place, had every value been repeated as often as its weight says
    ends = torch.cat([places.floor(), places.floor() + 1], dim=1)
    index = torch.searchsorted(reach, ends, right=True).clamp(max=rows.shape[1] - 1)
    low, high = values.gather(1, index).chunk(2, dim=1)
    return torch.lerp(low, high, (places - places.floor()).to(low.dtype))


def _quantiles(rows: Tensor, keep: float, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Quantiles (R, 1) that clip a share ``1 - keep`` of the row at each end."""
    if not 0.5 < keep <= 1.0:
        raise ValueError(f"keep must be above 0.5 and at most 1, not {keep}")
    low, high = quantile(rows, 1 - keep, weights), quantile(rows, keep, weights)
    return torch.minimum(low, high), high


def percentile_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    keep: float = 0.999,
    weights: Tensor | None = None,
) -> QuantParams:
    """The range that clips a share ``1 - keep`` of the values at each end.

    The ends are interpolated between neighbouring values, as in the code of RepQ-ViT.

    Args:
        x: any shape; parameters broadcast over it, with ``x.shape[axis]`` entries.
        bits: 1 to 8.
        axis: None for one range, else one for each index into that axis.
        symmetric: zero point fixed in the middle of the codes.
        keep: share of the values below the upper end, above 0.5; 1.0 is min-max.
        weights: number of values that each value stands for, in the shape of ``x``; 1 by default.

    Raises:
        ValueError: empty tensor, NaN or infinity (also where they would be clipped).
    """

    def search(rows: Tensor, weights: Tensor | None) -> QuantParams:
        minmax_rows(rows, bits, symmetric)
        return affine_params(*_quantiles(rows, keep, weights), bits, symmetric)

    return blockwise(x, axis, search, weights)


def percentile_mse_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    keeps: Sequence[float] = (0.999, 0.9999, 0.99999),
    norm: float = 2.0,
    weights: Tensor | None = None,
) -> QuantParams:
    """The percentile or min-max range with the smallest error (RepQ-ViT, Li et al., ICCV 2023).

    Args:
        x: any shape; parameters broadcast over it, with ``x.shape[axis]`` entries.
        bits: 1 to 8.
        axis: None for one range, else one for each index into that axis.
        symmetric: zero point fixed in the middle of the codes.
        keeps: candidates for ``keep`` of ``percentile_range``.
        norm: exponent of the error.
        weights: number of values that each value stands for, in the shape of ``x``; 1 by default.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """

    def search(rows: Tensor, weights: Tensor | None) -> QuantParams:
        plain = minmax_rows(rows, bits, symmetric)
        low, high = zip(*(_quantiles(rows, keep, weights) for keep in keeps), strict=True)
        candidates = affine_params(torch.cat(low, dim=1), torch.cat(high, dim=1), bits, symmetric)
        return best_of(rows, plain, candidates, norm, weights)

    return blockwise(x, axis, search, weights)


def percentile_mse_act_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    weights: Tensor | None = None,
) -> QuantParams:
    """``percentile_mse_range`` for activations, see ``mse_act_range``; the same arguments."""
    return percentile_mse_range(
        x, bits, axis=axis, symmetric=symmetric, norm=ACT_NORM, weights=weights
    )
