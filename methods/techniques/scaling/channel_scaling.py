"""Input-channel scaling, which does not change the function of the network.

A layer ``W x`` equals ``(W * s) (x / s)`` for any positive factor s per input channel. The
functions here choose s and scale the weights. The factor ``1 / s`` becomes part of the input's
quantization, ``round(x_k / (s_k * scale))``, so the integer product still has one scale a tensor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.model.options.input_scale import scale_input


@dataclass(frozen=True, slots=True)
class Scaled:
    """Weights multiplied by a factor per input channel.

    Attributes:
        weights: scaled weights in the order and shapes given; applied to ``x / factor`` they give
            what the originals give for x.
        factor: the factors s, (K,), positive.
    """

    weights: tuple[Tensor, ...]
    factor: Tensor


@dataclass(frozen=True, slots=True)
class Dilated(Scaled):
    """Dilated weights.

    Attributes:
        fixed: channels that hold the largest or smallest weight of a row, (K,) bool; their factor
            is 1. The smaller their share, the more dilation can do: it is near 1 where a layer has
            as many outputs as inputs, small where it goes from wide to narrow.
    """

    fixed: Tensor


def smooth(
    act_absmax: Tensor, *weights: Tensor, alpha: float = 0.5, beta: float | None = None
) -> Scaled:
    """Move part of the activation's range into the weights.

    SmoothQuant (Xiao et al., ICML 2023, Eq. 4): ``s_k = max|X_k|**alpha / max|W_k|**beta`` with
    ``beta = 1 - alpha``; MPQ-DM's pre-scaling is alpha = 0.5, SVDQuant also tries beta = 0.
    Channels that are all zero in the activation or in the weights keep factor 1.

    Args:
        act_absmax: largest magnitude of each input channel over the calibration set, (K,).
        weights: weights of all layers that read this input, each (O, K, ...), which share s.
        alpha: exponent of the activation: 1 equalizes its channels, 0 those of the weights.
        beta: exponent of the weights; None for ``1 - alpha``.

    Raises:
        ValueError: no weight, shapes that do not fit, exponents outside [0, 1], or values not
            finite.
    """
    beta = 1 - alpha if beta is None else beta
    if not weights or not 0 <= alpha <= 1 or not 0 <= beta <= 1:
        raise ValueError(
            f"smoothing needs a weight and exponents in [0, 1], got alpha {alpha}, beta {beta}"
        )
    for weight in weights:
        scale_input(weight, act_absmax)  # refuses shapes that do not fit
    weight_absmax = torch.stack([_channel_rows(w).abs().amax(dim=(0, 2)) for w in weights]).amax(0)
    if not bool(torch.isfinite(act_absmax + weight_absmax).all()) or bool((act_absmax < 0).any()):
        raise ValueError("smoothing needs finite weights and magnitudes of at least 0")
    live = (act_absmax > 0) & (weight_absmax > 0)
    one = torch.ones_like(act_absmax)
    top, bottom = torch.where(live, act_absmax, one), torch.where(live, weight_absmax, one)
    factor = top.pow(alpha) / bottom.pow(beta)
    return Scaled(tuple(scale_input(w, factor) for w in weights), factor)


def dilate(*weights: Tensor) -> Dilated:
    """Stretch input channels as far as possible without changing any row's extreme weights.

    DilateQuant (Liu et al., arXiv:2409.14307): channels with the largest or smallest weight of
    some row keep factor 1. Any other takes the largest s_k with
    ``row_min <= s_k * W[j, k] <= row_max`` for all rows j, so s_k >= 1 and the min-max scales
    of the weights do not change. An extreme of zero fixes no channel: scaling leaves it zero.

    Args:
        weights: weights of all layers that read this input, each (O, K, ...) with the same K; all
            kernel positions belong to their channel.

    Raises:
        ValueError: no weight, shapes that do not fit, or weights not finite.
    """
    if not weights or any(w.dim() < 2 or w.shape[1] != weights[0].shape[1] for w in weights):
        raise ValueError("dilation needs weights (O, K, ...) with one K")
    bounds, fixed = zip(*(_room(_channel_rows(w)) for w in weights), strict=True)
    room = torch.stack(bounds).amin(0)
    held = torch.stack(fixed).any(0)
    factor = torch.where(held | torch.isinf(room), torch.ones_like(room), room)
    stretched = []
    for weight in weights:
        rows = weight.flatten(1)
        low, high = (x.reshape(-1, *[1] * (weight.dim() - 1)) for x in rows.aminmax(dim=1))
        # the product may exceed the bound by one rounding; a row's extremes must stay exact
        stretched.append(torch.minimum(torch.maximum(scale_input(weight, factor), low), high))
    return Dilated(tuple(stretched), factor, held)


def _channel_rows(weight: Tensor) -> Tensor:
    """The weight as (O, K, kernel positions); a linear weight has one position."""
    return weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)


def _room(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Largest factor of each channel of (O, K, P) weights, and whether it holds a row's extreme.

    The factor is infinite where nothing limits it.
    """
    if rows.numel() == 0 or not bool(torch.isfinite(rows).all()):
        raise ValueError("dilation needs weights that are finite and not empty")
    flat = rows.flatten(1)
    high, low = flat.amax(1)[:, None, None], flat.amin(1)[:, None, None]
    infinite = torch.full_like(rows, torch.inf)
    safe = torch.where(rows == 0, torch.ones_like(rows), rows)
    room = torch.where(rows > 0, high / safe, torch.where(rows < 0, low / safe, infinite))
    held = torch.zeros(rows.shape[1], dtype=torch.bool, device=rows.device)
    for extreme, place in ((high, flat.argmax(1)), (low, flat.argmin(1))):
        held[place[extreme.flatten() != 0] // rows.shape[2]] = True
    return room.amin(dim=(0, 2)), held
