"""Range searches: pure functions from a tensor to scale and zero point.

``axis=None`` gives one range for the whole tensor, ``axis=0`` one per leading index (the output
channel of a weight). Searches work on all channels at once, one pass over the candidates.
"""

from typing import Protocol

import torch
from torch import Tensor

from quantarena.methods.core.quantizer import QuantParams, affine_params


class RangeSearch(Protocol):
    """How every search is called."""

    def __call__(
        self, x: Tensor, bits: int, *, axis: int | None = None, symmetric: bool = False
    ) -> QuantParams:
        """Scale and zero point for ``x``."""
        ...


def _rows(x: Tensor, axis: int | None) -> tuple[Tensor, tuple[int, ...]]:
    """``x`` as (channels, values), and the shape in which parameters broadcast over ``x``."""
    if x.numel() == 0:
        raise ValueError("cannot find a range: the tensor is empty")
    if axis is None:
        return x.reshape(1, -1), (1,) * x.dim()
    rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
    shape = [1] * x.dim()
    shape[axis] = x.shape[axis]
    return rows, tuple(shape)


def _shaped(params: QuantParams, shape: tuple[int, ...]) -> QuantParams:
    return QuantParams(params.scale.reshape(shape), params.zero_point.reshape(shape), params.bits)


def minmax_range(
    x: Tensor, bits: int, *, axis: int | None = None, symmetric: bool = False
) -> QuantParams:
    """The range from the smallest to the largest value; nothing is clipped.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """
    rows, shape = _rows(x.float(), axis)
    low, high = rows.aminmax(dim=1, keepdim=True)
    return _shaped(affine_params(low, high, bits, symmetric), shape)


def mse_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    norm: float = 2.4,
    coarse: int = 17,
    fine: int = 8,
) -> QuantParams:
    """The shrunk min-max range with the smallest mean ``|x - q(x)| ** norm``.

    As in the BRECQ lineage (80 shrinkings, 1 % apart), but in two passes: ``coarse`` shrinkings
    from the full range down to a fifth of it for all channels, then ``fine`` ones around each
    channel's own best. That finds the same minimum of this one-humped curve with a third of the
    candidates. The full range is a candidate, so the result never loses to min-max in its norm.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """
    rows, shape = _rows(x.float(), axis)
    low, high = rows.aminmax(dim=1, keepdim=True)
    affine_params(low, high, bits, symmetric)  # refuses what is not finite, by name
    error = torch.empty_like(rows)

    def loss_of(shrink: Tensor) -> Tensor:
        params = affine_params(low * shrink, high * shrink, bits, symmetric)
        torch.mul(rows, params.scale.reciprocal(), out=error)
        error.round_().clamp_(-params.zero_point, params.levels - 1 - params.zero_point)
        error.mul_(params.scale).sub_(rows).abs_()
        return error.pow_(norm).mean(dim=1, keepdim=True)

    best = torch.ones_like(low)
    best_loss = loss_of(best)

    def keep_better(shrink: Tensor) -> None:
        nonlocal best, best_loss
        loss = loss_of(shrink)
        best = torch.where(loss < best_loss, shrink, best)
        best_loss = torch.minimum(loss, best_loss)

    step = 0.8 / (coarse - 1)
    for index in range(1, coarse):
        keep_better(torch.full_like(low, 1.0 - step * index))
    centre = best
    for index in range(1, fine + 1):
        offset = step * (2 * index / (fine + 1) - 1)
        keep_better((centre + offset).clamp(max=1.0))
    return _shaped(affine_params(low * best, high * best, bits, symmetric), shape)


RANGES: dict[str, RangeSearch] = {"minmax": minmax_range, "mse": mse_range}
