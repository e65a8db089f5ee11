"""More range searches: percentiles, thresholds, and ranges with zero points.

Each may stand wherever a ``RangeSearch`` is asked for; ``SEARCHES`` names them all. A search that
minimises an error also tries min-max, so it never loses to it in its own norm.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quantarena.methods.core.candidates import best_of, blockwise, minmax_rows
from quantarena.methods.core.quantizer import SCALE_FLOOR, QuantParams, affine_params
from quantarena.methods.core.ranges import RANGES, RangeSearch


def _quantiles(rows: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """Order statistics (R, 1) that leave ``1 - keep`` of a row below and as much above."""
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
    """The range between two order statistics: ``1 - keep`` of the values is clipped at each end.

    Nothing is clipped where a row has fewer than ``1 / (1 - keep)`` values.

    Args:
        x: any shape; parameters broadcast over it, with ``x.shape[axis]`` entries.
        bits: 1 to 8.
        axis: None for one range, else one for each index into that axis.
        symmetric: zero point fixed in the middle of the codes.
        keep: above 0.5; 1.0 is min-max.

    Raises:
        ValueError: empty tensor, NaN or infinity (also where it would have been clipped).
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
    """The percentile range with the smallest error (RepQ-ViT, Li et al., ICCV 2023), or min-max.

    Args:
        x: any shape; parameters broadcast over it, with ``x.shape[axis]`` entries.
        bits: 1 to 8.
        axis: None for one range, else one for each index into that axis.
        symmetric: zero point fixed in the middle of the codes.
        keeps: see ``percentile_range``.
        norm: exponent of the error.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """

    def search(rows: Tensor) -> QuantParams:
        plain = minmax_rows(rows, bits, symmetric)
        low, high = zip(*(_quantiles(rows, keep) for keep in keeps), strict=True)
        found = affine_params(torch.cat(low, dim=1), torch.cat(high, dim=1), bits, symmetric)
        return best_of(rows, plain, found, norm)

    return blockwise(x, axis, search)


def _fractions(count: int, like: Tensor) -> Tensor:
    """``1/count .. 1`` as (1, count)."""
    return torch.arange(1, count + 1, device=like.device).unsqueeze(0) / count


def mse_1d_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    norm: float = 2.4,
    thresholds: int = 100,
) -> QuantParams:
    """The threshold ``t`` in ``i/100 * max|x|`` with the smallest mean ``|x - q(x)| ** norm``.

    The range is ``[-t, t]`` with the zero point in the middle, and ``[0, t]`` or ``[-t, 0]`` for
    a row of one sign. Source: the 1-D search in the code of PTQ4DM (Shang et al., CVPR 2023) and
    EDA-DM (arXiv:2401.04585).

    Args:
        x: any shape; parameters broadcast over it, with ``x.shape[axis]`` entries.
        bits: 1 to 8.
        axis: None for one range, else one for each index into that axis.
        symmetric: zero point fixed in the middle of the codes.
        norm: exponent of the error.
        thresholds: how many.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """

    def search(rows: Tensor) -> QuantParams:
        plain = minmax_rows(rows, bits, symmetric)
        low, high = rows.aminmax(dim=1, keepdim=True)
        # half of float32's largest keeps -t .. t a finite range
        widest = torch.maximum(-low, high).clamp(max=torch.finfo(torch.float32).max / 2)
        steps = widest * _fractions(thresholds, rows)
        below, above = steps * -(low < 0).float(), steps * (high > 0)
        return best_of(rows, plain, affine_params(below, above, bits, symmetric), norm)

    return blockwise(x, axis, search)


def mse_2d_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    norm: float = 2.4,
    widths: int = 100,
    positions: int = 17,
) -> QuantParams:
    """The width and zero point with the smallest mean ``|x - q(x)| ** norm``.

    Widths are ``i/100`` of the min-max range, which contains zero. Of the zero points only those
    count that keep the grid inside that range; up to four bits all are tried, above that
    ``positions`` of them, evenly spread, and then as many around the best. Symmetric grids
    have no zero point to search: they get ``mse_1d_range``. Source: the 2-D search in the code of
    PTQ4DM (Shang et al., CVPR 2023) and EDA-DM (arXiv:2401.04585), there over all zero points.

    Args:
        x: any shape; parameters broadcast over it, with ``x.shape[axis]`` entries.
        bits: 1 to 8.
        axis: None for one range, else one for each index into that axis.
        symmetric: zero point fixed in the middle of the codes.
        norm: exponent of the error.
        widths: how many.
        positions: odd.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """
    if symmetric and bits > 1:
        return mse_1d_range(x, bits, axis=axis, symmetric=True, norm=norm, thresholds=widths)
    top = 2**bits - 1

    def reach(scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        first = (top - torch.round(high / scale)).clamp(0, top)
        return first, torch.round(-low / scale).clamp(0, top) - first

    def search(rows: Tensor) -> QuantParams:
        plain = minmax_rows(rows, bits, symmetric)
        low, high = rows.aminmax(dim=1, keepdim=True)
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) * _fractions(widths, rows) / top).clamp(min=SCALE_FLOOR)
        first, span = reach(scale, low, high)
        spread = torch.linspace(0, 1, positions, device=rows.device)
        zero = torch.round(first.unsqueeze(2) + span.unsqueeze(2) * spread)
        grid = QuantParams(scale.unsqueeze(2).expand_as(zero).flatten(1), zero.flatten(1), bits)
        best = best_of(rows, plain, grid, norm)
        first, span = reach(best.scale, low, high)
        near = torch.round(best.zero_point + span / (positions - 1) * (2 * spread - 1))
        near = near.clamp(0, top)
        return best_of(rows, best, QuantParams(best.scale.expand_as(near), near, bits), norm)

    return blockwise(x, axis, search)


SEARCHES: dict[str, RangeSearch] = {
    **RANGES,
    "percentile": percentile_range,
    "percentile_mse": percentile_mse_range,
    "mse_1d": mse_1d_range,
    "mse_2d": mse_2d_range,
}
