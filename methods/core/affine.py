"""Uniform affine quantization: codes, their values, and gradients through both.

A code is ``q = clamp(round_half_even(x * (1 / scale)) + zero_point, 0, 2**bits - 1)`` and stands
for ``(q - zero_point) * scale``. The reciprocal is computed once in float32, on purpose: the
packed kernels multiply by the same reciprocal, so simulated and packed codes are equal bit for bit.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SCALE_FLOOR = 1e-8
"""Smallest scale: a constant tensor must not divide by zero."""
FAR = 2**14
"""Largest distance of a zero point from the codes: products of codes stay within int32 for long
sums, and codes less their zero point within the 16 bits that kernels quantize in."""


@dataclass(frozen=True, slots=True)
class QuantParams:
    """Scale and zero point, shaped to broadcast over the tensor they belong to.

    Attributes:
        scale: positive float32.
        zero_point: integer-valued float32 in ``[0, 2**bits - 1]``; of :func:`tight_params` up to
            ``FAR`` beyond that.
        bits: 1 to 8; the largest width where channels differ.
        widths: width of each channel, float32 that broadcasts over the tensor; None where all
            have ``bits``.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int
    widths: Tensor | None = None

    @property
    def levels(self) -> int:
        """Number of codes at the largest width."""
        return int(2**self.bits)

    def clip(self, codes: Tensor) -> Tensor:
        """Clamp codes to those that exist.

        The gradient passes through every code that exists, the first and the last included.
        """
        if codes.requires_grad and torch.is_grad_enabled():
            clipped: Tensor = _Clip.apply(codes, self._top())
            return clipped
        return _clip(codes, self._top())

    def _top(self) -> Tensor | int:
        return self.levels - 1 if self.widths is None else torch.exp2(self.widths) - 1


def _clip(codes: Tensor, top: Tensor | int) -> Tensor:
    """Codes clamped to ``[0, top]``."""
    if isinstance(top, int):
        return codes.clamp(0, top)
    return torch.minimum(codes.clamp(min=0), top)


class _Clip(torch.autograd.Function):
    """``_clip`` whose gradient is 1 inside the bounds and at them, 0 outside.

    The gradient at the bounds themselves is 0 or a half in the clamps of some versions of torch,
    which leaves end codes, and so all codes of one bit, without a gradient.
    """

    @staticmethod
    def forward(ctx: Any, codes: Tensor, top: Tensor | int) -> Tensor:
        clipped = _clip(codes, top)
        ctx.save_for_backward(clipped == codes)
        return clipped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None


def affine_params(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> QuantParams:
    """Scale and zero point that cover ``[low, high]``, widened to contain zero.

    Args:
        low: smallest values, any shape.
        high: largest values, same shape.
        bits: 1 to 8.
        symmetric: zero point fixed at ``2**(bits - 1)``, codes ``-2**(bits-1) .. 2**(bits-1) - 1``
            around it. At one bit a symmetric grid has no positive code, so it is made affine.

    Raises:
        ValueError: a bound is not finite.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    if not bool(torch.isfinite(high - low).all()):
        raise ValueError("cannot quantize: the tensor holds NaN or infinity")
    if symmetric and bits > 1:
        half = 2 ** (bits - 1)
        scale = torch.maximum(high / (half - 1), -low / half).clamp(min=SCALE_FLOOR)
        return QuantParams(scale, torch.full_like(scale, half), bits)
    top = 2**bits - 1
    scale = ((high - low) / top).clamp(min=SCALE_FLOOR)
    zero_point = torch.round(-low / scale).clamp(0, top)
    return QuantParams(scale, zero_point, bits)


def tight_params(low: Tensor, high: Tensor, bits: int) -> QuantParams:
    """Scale and zero point that cover ``[low, high]`` and nothing else, with zero or without.

    The zero point of a range beyond zero is no code, so that nothing may be padded with it. Ranges
    so far away that it would lie further than ``FAR`` from the codes are widened.

    Args:
        low: smallest values, any shape.
        high: largest values, same shape.
        bits: 1 to 8.

    Raises:
        ValueError: a bound is not finite.
    """
    near = affine_params(low, high, bits, symmetric=False)
    low, high = low.float(), high.float()
    beyond, top = (low > 0) | (high < 0), near.levels - 1
    scale = ((high - low) / top).maximum(torch.maximum(low, -high) / FAR).clamp(min=SCALE_FLOOR)
    zero_point = torch.round(-low / scale).clamp(-FAR, FAR + top)
    return QuantParams(
        scale.where(beyond, near.scale), zero_point.where(beyond, near.zero_point), bits
    )


def unsigned_params(high: Tensor, bits: int) -> QuantParams:
    """Scale that covers ``[0, high]`` with the zero point at code 0, as for softmax outputs.

    Args:
        high: largest values, any shape; negative ones count as 0.
        bits: 1 to 8.

    Raises:
        ValueError: a bound is not finite.
    """
    return affine_params(torch.zeros_like(high), high, bits, symmetric=False)


def quantize(x: Tensor, params: QuantParams) -> Tensor:
    """Codes of ``x`` as integer-valued float32, same shape; computed in float32 from any dtype."""
    return params.clip(torch.round(x.float() * params.scale.reciprocal()) + params.zero_point)


def dequantize(codes: Tensor, params: QuantParams) -> Tensor:
    """The values of codes, float32."""
    return (codes - params.zero_point) * params.scale


def fake_quantize(x: Tensor, params: QuantParams) -> Tensor:
    """``dequantize(quantize(x))`` without gradients."""
    return dequantize(quantize(x, params), params)


class _RoundSTE(torch.autograd.Function):
    """Round to nearest even; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def round_ste(x: Tensor) -> Tensor:
    """Round with a straight-through gradient (Bengio et al., arXiv:1308.3432)."""
    result: Tensor = _RoundSTE.apply(x)
    return result


def fake_quantize_ste(x: Tensor, params: QuantParams) -> Tensor:
    """Fake quantization with gradients to ``x`` (inside the range) and to the scale (LSQ).

    The gradient of the scale is LSQ's (Esser et al., ICLR 2020): rounding error inside the range,
    the clipped code outside. Values equal ``fake_quantize`` exactly.
    """
    codes = params.clip(round_ste(x.float() * params.scale.reciprocal()) + params.zero_point)
    return (codes - params.zero_point) * params.scale


@torch.no_grad()
def project_zero_point(zero_point: Tensor, params: QuantParams, *, clip: bool = True) -> float:
    """Round zero points in place, with ``clip`` to codes that exist; returns the largest move."""
    if not zero_point.numel():
        return 0.0
    nearest = params.clip(zero_point.round()) if clip else zero_point.round()
    drift = float((nearest - zero_point).abs().max())
    zero_point.copy_(nearest)
    return drift
