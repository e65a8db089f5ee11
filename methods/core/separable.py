"""Weights as integers times one vector per output and one per input channel (TuneQDM).

``W = d_out * (codes - zero_point) * d_in`` (arXiv:2401.04339). The integers are shared by all tasks
and steps; only the two vectors change, so nothing is packed again.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def separable_weight(centered: Tensor, d_out: Tensor, d_in: Tensor) -> Tensor:
    """The dense weight.

    Args:
        centered: codes minus zero point, (O, K, ...).
        d_out: (O,).
        d_in: (K,); a convolution shares it over its kernel.

    Raises:
        ValueError: vectors that do not fit.
    """
    if centered.dim() < 2 or (d_out.shape, d_in.shape) != (centered.shape[:1], centered.shape[1:2]):
        raise ValueError(
            f"vectors of {tuple(d_out.shape)} and {tuple(d_in.shape)} do not fit a weight of shape "
            f"{tuple(centered.shape)}"
        )
    places = [1] * (centered.dim() - 2)
    return d_out.reshape(-1, 1, *places) * centered * d_in.reshape(1, -1, *places)


def separable_linear(
    x: Tensor, centered: Tensor, d_out: Tensor, d_in: Tensor, bias: Tensor | None = None
) -> Tensor:
    """What a packed kernel does: ``d_in`` on the input, ``d_out`` in the epilogue.

    Args:
        x: (..., K).
        centered: codes minus zero point, (O, K).
        d_out: (O,).
        d_in: (K,).
        bias: (O,) or None.

    Returns:
        (..., O), equal to the dense layer of ``separable_weight`` up to rounding.
    """
    product = F.linear(x * d_in, centered) * d_out
    return product if bias is None else product + bias


def fit_separable(
    target: Tensor, centered: Tensor, *, d_out: Tensor | None = None, rounds: int = 20
) -> tuple[Tensor, Tensor]:
    """Vectors whose weight is nearest to ``target``, by alternating least squares.

    Each half step is the exact minimum over one vector, so the error never rises. Channels whose
    codes are all zero keep factor 1.

    Args:
        target: weight to approach, (O, K, ...).
        centered: codes minus zero point, same shape.
        d_out: where to start, (O,); ones otherwise.
        rounds: alternations.

    Returns:
        ``d_out`` (O,) and ``d_in`` (K,).

    Raises:
        ValueError: shapes that differ.
    """
    if target.shape != centered.shape or target.dim() < 2:
        raise ValueError(
            f"target {tuple(target.shape)} and codes {tuple(centered.shape)} must have one shape"
        )
    wanted, codes = (x.reshape(*x.shape[:2], -1) for x in (target, centered))
    cross, power = (wanted * codes).sum(2), codes.square().sum(2)
    out = torch.ones_like(cross[:, 0]) if d_out is None else d_out.clone()
    inner = torch.ones_like(cross[0])
    for index in range(rounds):
        if index or d_out is None:
            out = _ratio(cross @ inner, power @ inner.square())
        inner = _ratio(out @ cross, out.square() @ power)
    return out, inner


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    one = torch.ones_like(top)
    return torch.where(bottom > 0, top / torch.where(bottom > 0, bottom, one), one)
