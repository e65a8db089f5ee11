"""Range searches: pure functions from a tensor to scale and zero point.

``axis=None`` gives one range for the whole tensor, ``axis=0`` one per leading index (the output
channel of a weight). Searches work on all channels at once, one pass over the candidates.
"""

from typing import Protocol

import torch
from quantarena.methods.core.quantizer import QuantParams, affine_params, fake_quantize
from torch import Tensor


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
    candidates: int = 80,
    norm: float = 2.4,
) -> QuantParams:
    """The shrunk min-max range with the smallest mean ``|x - q(x)| ** norm``.

    Candidates are the min-max range times ``1 - 0.8 * i / candidates`` (down to 21 % of it), as in
    the BRECQ lineage. Each channel takes its own best; ties keep the wider range.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """
    rows, shape = _rows(x.float(), axis)
    low, high = rows.aminmax(dim=1, keepdim=True)
    best = affine_params(low, high, bits, symmetric)
    best_loss = torch.full_like(low, torch.inf)
    scale, zero_point = best.scale.clone(), best.zero_point.clone()
    for index in range(candidates):
        shrink = 1.0 - 0.8 * index / candidates
        params = affine_params(low * shrink, high * shrink, bits, symmetric)
        error = (fake_quantize(rows, params) - rows).abs_()
        loss = error.pow_(norm).mean(dim=1, keepdim=True)
        better = loss < best_loss
        best_loss = torch.where(better, loss, best_loss)
        scale = torch.where(better, params.scale, scale)
        zero_point = torch.where(better, params.zero_point, zero_point)
    return _shaped(QuantParams(scale, zero_point, bits), shape)


RANGES: dict[str, RangeSearch] = {"minmax": minmax_range, "mse": mse_range}
