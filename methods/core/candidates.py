"""What range searches share: rows in blocks, and the best of many candidates for each row.

Loops go over blocks of candidates and of rows, sized to stay in cache, never over channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quantarena.methods.core.quantizer import QuantParams, affine_params
from quantarena.methods.core.ranges import _rows, _shaped

_BUDGET = 1 << 20  # values in flight at once: a few MB
_BLOCK = 1024  # rows searched together
_TINY = 1e-30

RowSearch = Callable[[Tensor], QuantParams]


def blockwise(x: Tensor, axis: int | None, search: RowSearch) -> QuantParams:
    """Apply ``search`` (rows (R, N) -> params (R, 1)) to blocks of rows of ``x``."""
    rows, shape = _rows(x.float(), axis)
    found = [search(block) for block in torch.split(rows, _BLOCK)]
    scale = torch.cat([params.scale for params in found])
    zero_point = torch.cat([params.zero_point for params in found])
    return _shaped(QuantParams(scale, zero_point, found[0].bits), shape)


def losses_of(rows: Tensor, candidates: QuantParams, norm: float) -> Tensor:
    """Mean ``|x - q(x)| ** norm``, (R, K), of rows (R, N) under candidates (R, K).

    Errors are taken relative to the largest value of their row, so that no power overflows.
    """
    top = candidates.levels - 1
    values = rows.unsqueeze(1)
    unit = values.abs().amax(dim=2, keepdim=True).clamp(min=_TINY).reciprocal()
    chunk = max(1, _BUDGET // rows.numel())
    found = []
    for scale, zero in zip(
        torch.split(candidates.scale.unsqueeze(2), chunk, 1),
        torch.split(candidates.zero_point.unsqueeze(2), chunk, 1),
        strict=True,
    ):
        error = (values * scale.reciprocal()).round_().clamp_(-zero, top - zero)
        error = error.mul_(scale).sub_(values).mul_(unit).abs_().pow_(norm)
        found.append(error.mean(dim=2))
    return torch.cat(found, dim=1)


def best_of(rows: Tensor, first: QuantParams, others: QuantParams, norm: float) -> QuantParams:
    """The candidate (R, 1) with the smallest loss; ``first`` (R, 1) wins ties."""
    scale = torch.cat([first.scale, others.scale], dim=1)
    zero_point = torch.cat([first.zero_point, others.zero_point], dim=1)
    losses = losses_of(rows, QuantParams(scale, zero_point, first.bits), norm)
    index = losses.argmin(dim=1, keepdim=True)
    index = torch.where(losses[:, :1] <= losses.gather(1, index), 0, index)
    return QuantParams(scale.gather(1, index), zero_point.gather(1, index), first.bits)


def minmax_rows(rows: Tensor, bits: int, symmetric: bool) -> QuantParams:
    """Min-max of rows, (R, 1); refuses what is not finite, by name."""
    return affine_params(*rows.aminmax(dim=1, keepdim=True), bits, symmetric)
