"""Grid searches of PTQ4DM's lineage: over clipping thresholds, or over widths and zero points."""

import torch
from torch import Tensor

from quantarena.methods.core.affine import SCALE_FLOOR, QuantParams, affine_params
from quantarena.methods.techniques.ranges.rows import (
    best_of,
    blockwise,
    condensed,
    minmax_rows,
)


def _fractions(count: int, like: Tensor) -> Tensor:
    """The fractions ``1/count .. 1``, (1, count)."""
    return torch.arange(1, count + 1, device=like.device).unsqueeze(0) / count


def mse_1d_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    norm: float = 2.4,
    thresholds: int = 100,
    weights: Tensor | None = None,
) -> QuantParams:
    """The threshold ``t`` in ``i/100 * max|x|`` with the smallest mean ``|x - q(x)| ** norm``.

    The range is ``[-t, t]`` with the zero point in the middle, and ``[0, t]`` or ``[-t, 0]`` for
    a row of one sign. An asymmetric min-max range is not tried. Source: the 1-D search in the code
    of PTQ4DM (Shang et al., CVPR 2023) and EDA-DM (arXiv:2401.04585).

    Args:
        x: any shape; parameters broadcast over it, with ``x.shape[axis]`` entries.
        bits: 1 to 8.
        axis: None for one range, else one for each index into that axis.
        symmetric: zero point fixed in the middle of the codes.
        norm: exponent of the error.
        thresholds: number of thresholds.
        weights: number of values that each value stands for, in the shape of ``x``; 1 by default.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """

    def search(rows: Tensor, weights: Tensor | None) -> QuantParams:
        plain = minmax_rows(rows, bits, symmetric)  # refuses what is not finite
        low, high = rows.aminmax(dim=1, keepdim=True)
        # half of float32's largest value keeps -t .. t a finite range
        most = torch.maximum(-low, high).clamp(max=torch.finfo(torch.float32).max / 2)
        steps = most * _fractions(thresholds, rows)
        grid = affine_params(steps * -(low < 0).float(), steps * (high > 0), bits, symmetric)
        if symmetric:
            return best_of(rows, plain, grid, norm, weights)
        middle = float(round((2**bits - 1) / 2))  # t / scale may round to either side of it
        zero = torch.where((low < 0) & (high > 0), middle, grid.zero_point)
        widest = QuantParams(grid.scale[:, -1:], zero[:, -1:], bits)
        return best_of(rows, widest, QuantParams(grid.scale, zero, bits), norm, weights)

    return blockwise(x, axis, search, weights)


def mse_2d_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    norm: float = 2.4,
    widths: int = 100,
    positions: int = 17,
    weights: Tensor | None = None,
) -> QuantParams:
    """The width and zero point with the smallest mean ``|x - q(x)| ** norm``.

    Widths are ``i/100`` of the min-max range, which contains zero. Only zero points that keep the
    grid inside that range are tried: all of them up to four bits, else ``positions`` evenly spread
    ones and then as many around the best. Rows of more than 16,384 values are replaced by a
    histogram of 8,192 bins, and the result is compared with min-max on the values themselves.
    Symmetric grids have no zero point to search: they use ``mse_1d_range``.

    Source: the 2-D search in the code of PTQ4DM (Shang et al., CVPR 2023) and EDA-DM
    (arXiv:2401.04585), there over all zero points.

    Args:
        x: any shape; parameters broadcast over it, with ``x.shape[axis]`` entries.
        bits: 1 to 8.
        axis: None for one range, else one for each index into that axis.
        symmetric: zero point fixed in the middle of the codes.
        norm: exponent of the error.
        widths: number of widths.
        positions: number of zero points tried for each width, odd.
        weights: number of values that each value stands for, in the shape of ``x``; 1 by default.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """
    if symmetric and bits > 1:
        return mse_1d_range(
            x, bits, axis=axis, symmetric=True, norm=norm, thresholds=widths, weights=weights
        )
    top = 2**bits - 1
    fraction, share = _pairs(widths, positions, top, x.device)
    spread = torch.linspace(-1, 1, positions, device=x.device) / (positions - 1)

    def reach(scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        first = (top - torch.round(high / scale)).clamp(0, top)
        return first, torch.round(-low / scale).clamp(0, top) - first

    def search(rows: Tensor, weights: Tensor | None) -> QuantParams:
        plain = minmax_rows(rows, bits, symmetric)
        low, high = rows.aminmax(dim=1, keepdim=True)
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) * fraction / top).clamp(min=SCALE_FLOOR)
        first, span = reach(scale, low, high)
        grid = QuantParams(scale, torch.round(first + span * share), bits)
        short, counts = condensed(rows, weights)
        best = best_of(short, plain, grid, norm, counts)
        first, span = reach(best.scale, low, high)
        near = torch.round(best.zero_point + span * spread).clamp(0, top)
        near_best = QuantParams(best.scale.expand_as(near), near, bits)
        best = best_of(short, best, near_best, norm, counts)
        return best if counts is None else best_of(rows, plain, best, norm, weights)

    return blockwise(x, axis, search, weights)


def _pairs(widths: int, positions: int, top: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pairs of width and zero point to try, (P,) each.

    Widths are shares of min-max; zero points are shares of the interval that a width leaves open. A
    grid almost as wide as min-max fits inside it with few zero points only, and gets no more.
    """
    fraction = torch.arange(1, widths + 1, device=device) / widths
    # two roundings can allow one more zero point than the difference of the widths
    open_to = torch.floor(top * (1 / fraction - 1) + 1).clamp(max=top).long() + 1
    count = open_to.clamp(max=positions)
    start = count.cumsum(0) - count
    place = torch.arange(int(count.sum()), device=device) - start.repeat_interleave(count)
    share = place / (count - 1).repeat_interleave(count)
    return fraction.repeat_interleave(count), share
