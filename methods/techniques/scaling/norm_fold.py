"""Turns channel-wise quantization of a norm's output into layer-wise quantization (RepQuant).

With channel-wise scale s and zero point z, layer-wise values s~ and z~, ``r1 = s / s~`` and
``r2 = z - z~``, the norm outputs ``x~ = (x + s * r2) / r1`` instead of x, and its consumers undo
that in weight and bias (arXiv:2402.05628; RepQ-ViT, ICCV 2023). Then ``x~ / s~ + z~ = x / s + z``:
every code equals that of the channel-wise quantizer if r2 is an integer. So the mean of the zero
points is rounded here; it is left unrounded only for comparison with the released code.

The fold changes columns of the consumers' weights, so their ranges must be searched again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Affine(NamedTuple):
    """Weight and bias of a layer or a norm; a norm's weight is (K,)."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Folded:
    """A producer that outputs ``x~``, and consumers that expect it.

    Attributes:
        producer: the norm, or the layer that makes its modulation; always with a bias.
        consumers: the reading layers in the order given, all with a bias.
        scale: s~, scalar.
        zero_point: z~, scalar; integer unless fractional ones were asked for.
        ratio: r1, (K,).
        offset: r2, (K,).
    """

    producer: Affine
    consumers: tuple[Affine, ...]
    scale: Tensor
    zero_point: Tensor
    ratio: Tensor
    offset: Tensor


def fold_norm(
    norm: Affine | None,
    consumers: Sequence[Affine],
    scale: Tensor,
    zero_point: Tensor,
    *,
    fractional: bool = False,
    codes: int | None = None,
) -> Folded:
    """Fold a channel-wise quantizer into a norm's weight and bias.

    Args:
        norm: gamma and beta, (K,); None for a norm without them (1 and 0).
        consumers: all layers that read the norm's output, each (O, K) or a 1x1 convolution; they
            share the channel-wise quantizer.
        scale: s, (K,), positive.
        zero_point: z, (K,), integers.
        fractional: keep the mean zero point unrounded, as the released code does.
        codes: clamp z~ to [0, codes - 1], as kernels need it. The fold is exact for any integer z~,
            so z may lie outside. None does not clamp.

    Raises:
        ValueError: shapes or values that do not fit.
    """
    ratio, offset, layer_scale, layer_zero = _ratios(scale, zero_point, fractional, codes)
    gamma = torch.ones_like(scale) if norm is None else norm.weight
    if gamma.shape != scale.shape:
        raise ValueError(f"a norm of {tuple(gamma.shape)} and a scale of {tuple(scale.shape)}")
    beta = torch.zeros_like(gamma) if norm is None or norm.bias is None else norm.bias
    producer = Affine(gamma / ratio, (beta + scale * offset) / ratio)
    readers = tuple(_reader(layer, scale, ratio, offset) for layer in consumers)
    return Folded(producer, readers, layer_scale, layer_zero, ratio, offset)


def fold_adaln(
    modulation: Affine,
    shift: slice,
    gain: slice,
    consumers: Sequence[Affine],
    scale: Tensor,
    zero_point: Tensor,
    *,
    fractional: bool = False,
    codes: int | None = None,
) -> Folded:
    """Fold a channel-wise quantizer into the linear that modulates a norm.

    The linear makes shift and gain of ``LayerNorm(x) * (1 + gain) + shift``. Its rows are changed
    so that ``shift' = (shift + s * r2) / r1`` and ``gain' = (1 + gain) / r1 - 1``. The linear must
    belong to this norm alone: blocks that share one (PixArt) have different r1. Ranges by sampler
    call would need one r1 for all calls, because the consumers' weights are the same at all calls.

    Args:
        modulation: weight (M, C) and bias (M,) of the linear.
        shift: the K rows that make the shift.
        gain: the K rows that make the gain (called scale in diffusers).
        consumers: as in ``fold_norm``.
        scale: s, (K,), positive.
        zero_point: z, (K,), integers.
        fractional: as in ``fold_norm``.
        codes: as in ``fold_norm``.

    Raises:
        ValueError: shapes or values that do not fit.
    """
    ratio, offset, layer_scale, layer_zero = _ratios(scale, zero_point, fractional, codes)
    weight = modulation.weight.clone()
    bias = modulation.bias
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias.clone()
    if not len(bias[shift]) == len(bias[gain]) == len(scale):
        raise ValueError(
            f"{len(bias[shift])} shift rows and {len(bias[gain])} gain rows for {len(scale)} "
            "channels"
        )
    weight[shift] /= ratio[:, None]
    weight[gain] /= ratio[:, None]
    bias[shift] = (bias[shift] + scale * offset) / ratio
    bias[gain] = (bias[gain] + 1) / ratio - 1
    readers = tuple(_reader(layer, scale, ratio, offset) for layer in consumers)
    return Folded(Affine(weight, bias), readers, layer_scale, layer_zero, ratio, offset)


def _ratios(
    scale: Tensor, zero_point: Tensor, fractional: bool, codes: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute ``r1``, ``r2``, ``s~`` and ``z~``."""
    if scale.dim() != 1 or scale.shape != zero_point.shape or not len(scale):
        raise ValueError(
            f"scale {tuple(scale.shape)} and zero point {tuple(zero_point.shape)} must be (K,)"
        )
    if not bool(((scale > 0) & torch.isfinite(scale)).all()):
        raise ValueError("scales must be positive and finite")
    if not fractional and not torch.equal(zero_point, zero_point.round()):
        raise ValueError("zero points must be integers: round them, or ask for fractional ones")
    layer_scale, layer_zero = scale.mean(), zero_point.mean()
    if not fractional:
        layer_zero = layer_zero.round()
        if codes is not None:
            layer_zero = layer_zero.clamp(0, codes - 1)
    return scale / layer_scale, zero_point - layer_zero, layer_scale, layer_zero


def _reader(layer: Affine, scale: Tensor, ratio: Tensor, offset: Tensor) -> Affine:
    """Change a consumer to expect ``x~``: ``W (x~ * r1 - s * r2) + b``."""
    weight, bias = layer
    if weight.dim() < 2 or weight.shape[1] != len(scale):
        raise ValueError(
            f"a consumer of shape {tuple(weight.shape)} does not read {len(scale)} channels"
        )
    if weight[0, 0].numel() != 1:
        raise ValueError("a kernel larger than 1 pads with zeros, which the fold would shift")
    flat = weight.flatten(1)
    moved = flat @ (scale * offset)
    shifted = -moved if bias is None else bias - moved
    return Affine((flat * ratio).reshape(weight.shape), shifted)
