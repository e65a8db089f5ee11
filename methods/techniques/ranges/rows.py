"""Shared by range searches: tensors as rows, and the best of many candidate ranges for each row.

Loops run over blocks of candidates and of rows, sized to stay in cache, never over channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quantarena.methods.core.affine import QuantParams, affine_params

_BUDGET = 1 << 17  # values processed at once: half a megabyte
_TINY = 1e-30
_BINS = 1 << 13  # of a histogram that stands for a long row

RowSearch = Callable[[Tensor, Tensor | None], QuantParams]
"""Finds the ranges (R, 1) of rows (R, N) from the rows and the weights of their values, or None."""


def as_rows(x: Tensor, axis: int | None) -> tuple[Tensor, tuple[int, ...]]:
    """Reshape ``x`` to float32 rows (channels, values).

    Returns:
        The rows, and the shape in which their parameters broadcast over ``x``.

    Raises:
        ValueError: the tensor is empty.
    """
    if x.numel() == 0:
        raise ValueError("cannot find a range: the tensor is empty")
    x = x.float()
    if axis is None:
        return x.reshape(1, -1), (1,) * x.dim()
    shape = [1] * x.dim()
    shape[axis] = x.shape[axis]
    return x.movedim(axis, 0).reshape(x.shape[axis], -1), tuple(shape)


def shaped(params: QuantParams, shape: tuple[int, ...]) -> QuantParams:
    """Reshape scale and zero point."""
    return QuantParams(params.scale.reshape(shape), params.zero_point.reshape(shape), params.bits)


def blockwise(
    x: Tensor, axis: int | None, search: RowSearch, weights: Tensor | None = None
) -> QuantParams:
    """Apply ``search`` to blocks of rows of ``x``, and of ``weights`` in the same shape."""
    rows, shape = as_rows(x, axis)
    size = max(1, _BUDGET // rows.shape[1])
    blocks = [
        search(block, None if weights is None else as_rows(weights, axis)[0][start : start + size])
        for start, block in zip(range(0, len(rows), size), torch.split(rows, size), strict=True)
    ]
    scale = torch.cat([params.scale for params in blocks])
    zero_point = torch.cat([params.zero_point for params in blocks])
    return shaped(QuantParams(scale, zero_point, blocks[0].bits), shape)


def _power(error: Tensor, norm: float) -> Tensor:
    """``|error| ** norm`` in place, in half to a fortieth of the time of ``pow_``."""
    if norm == 1:
        return error.abs_()
    if norm == 3:
        return error.abs_().mul_(error.square())
    error.square_()
    # log2 of zero is -inf, whose exp2 is zero again
    return error if norm == 2 else error.log2_().mul_(norm / 2).exp2_()


def losses_of(
    rows: Tensor, candidates: QuantParams, norm: float, weights: Tensor | None = None
) -> Tensor:
    """Mean ``|x - q(x)| ** norm``, (R, K), of rows (R, N) under candidate ranges (R, K).

    Errors are relative to the largest value of their row, so that no power overflows. With
    ``weights`` (R, N) each value counts as often, and the result is the sum instead of the mean.
    """
    unit = rows.abs().amax(dim=1, keepdim=True).clamp(min=_TINY).reciprocal()
    values = (rows * unit).unsqueeze(1)
    scales = (candidates.scale * unit).unsqueeze(2)
    lows = -candidates.zero_point.unsqueeze(2)
    chunk = max(1, _BUDGET // rows.numel())
    losses = []
    buffer = torch.empty(0, device=rows.device)
    for scale, low in zip(torch.split(scales, chunk, 1), torch.split(lows, chunk, 1), strict=True):
        if buffer.shape[:2] != scale.shape[:2]:
            buffer = values.new_empty((*scale.shape[:2], values.shape[2]))
        error = torch.mul(values, scale.reciprocal(), out=buffer).round_()
        # two bounds at once, clamp_, take twice as long: they do not vectorise
        torch.maximum(error, low, out=error)
        torch.minimum(error, low + (candidates.levels - 1), out=error)
        error = _power(error.mul_(scale).sub_(values), norm)
        losses.append(
            error.mean(dim=2) if weights is None else (error @ weights.unsqueeze(2)).squeeze(2)
        )
    return torch.cat(losses, dim=1)


def condensed(rows: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Replace rows of more than 16,384 values by a histogram; shorter rows stay as they are.

    With 8,192 bins there are 32 bins for each of 256 codes of the full range. Losses of narrower
    ranges come out too small by ``(width of a bin / scale) ** 2``, so a search that uses this has
    to compare its result with min-max on the rows themselves.

    Returns:
        Mean value of each bin (R, M), 0 in empty bins, and its count or weight (R, M); rows that
        are no histogram have the weights that were given, or None.
    """
    if rows.shape[1] <= 2 * _BINS:
        return rows, weights
    weights = torch.ones_like(rows) if weights is None else weights
    low, high = rows.aminmax(dim=1, keepdim=True)
    # bounds are halved on the way: their difference may exceed float32
    step = ((high / 2 - low / 2) / (_BINS / 2)).clamp(min=torch.finfo(rows.dtype).tiny)
    bins = ((rows - low) / step).clamp_(0, _BINS - 1).long()
    shape = (rows.shape[0], _BINS)
    counts = rows.new_zeros(shape).scatter_add_(1, bins, weights)
    sums = torch.zeros(shape, dtype=torch.float64, device=rows.device)
    sums.scatter_add_(1, bins, rows.double() * weights)
    return (sums / torch.where(counts > 0, counts, 1)).float(), counts


def best_of(
    rows: Tensor,
    first: QuantParams,
    others: QuantParams,
    norm: float,
    weights: Tensor | None = None,
) -> QuantParams:
    """The range (R, 1) with the smallest loss; ``first`` (R, 1) wins ties with ``others``."""
    scale = torch.cat([first.scale, others.scale], dim=1)
    zero_point = torch.cat([first.zero_point, others.zero_point], dim=1)
    losses = losses_of(rows, QuantParams(scale, zero_point, first.bits), norm, weights)
    index = losses.argmin(dim=1, keepdim=True)
    index = torch.where(losses[:, :1] <= losses.gather(1, index), 0, index)
    return QuantParams(scale.gather(1, index), zero_point.gather(1, index), first.bits)


def minmax_rows(rows: Tensor, bits: int, symmetric: bool) -> QuantParams:
    """Min-max ranges of rows, (R, 1).

    Raises:
        ValueError: a row holds NaN or infinity.
    """
    return affine_params(*rows.aminmax(dim=1, keepdim=True), bits, symmetric)
