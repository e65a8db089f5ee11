"""Logarithmic quantization of values in [0, s], such as attention scores after softmax.

A code ``q`` stands for ``s * 2 ** -q`` (log2; DGQ, arXiv:2501.04304) or ``s * 2 ** (-q / 2)``
(log-sqrt2; RepQ-ViT, Li et al., ICCV 2023). With ``h = ceil(q / 2)`` the latter is
``s * 2 ** -h`` times sqrt(2) where ``q`` is odd. So a product with an integer matrix needs shifts
and one accumulator for log2, and two, of the even and of the odd codes, for log-sqrt2.

No code is deeper than ``DEEPEST`` octaves, which bounds the shifts. Wide codes (log2 above 5 bits,
log-sqrt2 above 6) therefore leave some of their range unused.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import BrokenModel

DEEPEST = 32
"""Octaves below ``s`` that codes reach: less than float32 resolves beside ``s``."""
_HALF_OCTAVE = 0x3F3504F3
"""Bits of sqrt(1/2) in float32."""
_SMALLEST = torch.finfo(torch.float32).tiny


def last_code(bits: int, per_octave: int) -> int:
    """The deepest code of a width: no more than ``DEEPEST`` octaves."""
    return min((1 << bits) - 1, DEEPEST * per_octave)


@dataclass(frozen=True, slots=True)
class LogParams:
    """A logarithmic grid.

    Attributes:
        scale: the value of code 0; positive float32 that broadcasts over the tensor.
        bits: 1 to 8.
        per_octave: codes per halving: 1 is log2, 2 is log-sqrt2.
        zero_code: whether the last code stands for exactly 0. Without it zeros become the
            smallest positive value. (RepQ-ViT's code adds a zero beside all ``2 ** bits``
            levels, which does not fit in ``bits`` bits.)
    """

    scale: Tensor
    bits: int
    per_octave: Literal[1, 2] = 1
    zero_code: bool = False

    @property
    def top(self) -> int:
        """The last code."""
        return last_code(self.bits, self.per_octave)


def log_params(
    x: Tensor,
    bits: int,
    *,
    per_octave: Literal[1, 2] = 1,
    axes: int = 0,
    zero_code: bool = False,
) -> LogParams:
    """The grid whose code 0 is the largest value, taken at run time.

    DGQ's code takes one maximum over the whole batch, so that a result depends on its batch
    mates; ``axes=1`` is one for each sample.

    Args:
        x: values of at least 0, any shape.
        bits: 1 to 8.
        per_octave: 1 for log2, 2 for log-sqrt2.
        axes: number of leading axes with scales of their own: 0 none, 1 sample, 2 also head.
        zero_code: see ``LogParams``.

    Returns:
        A grid with scale of shape (*x.shape[:axes], 1, ...).

    Raises:
        ValueError: empty tensor, NaN, infinity or a negative value; bits out of range.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"logarithmic codes have 1 to 8 bits, not {bits}")
    if x.numel() == 0:
        raise ValueError("cannot find a range: the tensor is empty")
    x = x.float()
    if not bool(torch.isfinite(x).all()):
        raise ValueError("cannot quantize: the tensor holds NaN or infinity")
    if bool((x < 0).any()):
        raise ValueError("cannot quantize logarithmically: the tensor holds negative values")
    scale = x.amax(dim=tuple(range(axes, x.dim())), keepdim=True) if axes < x.dim() else x
    return LogParams(scale.clamp(min=_SMALLEST), bits, per_octave, zero_code)


def log_quantize(x: Tensor, params: LogParams) -> Tensor:
    """Codes ``clamp(round(-per_octave * log2(x / s)), 0, top)``, uint8, same shape.

    Without a logarithm, so that the native kernels find the same codes bit for bit: of a ratio
    ``m * 2 ** e`` with ``m`` in [sqrt(1/2), sqrt(2)) the depth rounds to ``-e``; half octaves are
    those of its square.
    """
    ratio = x.float() / params.scale
    if params.per_octave == 2:
        ratio = ratio * ratio
    exponent = (ratio.view(torch.int32) - _HALF_OCTAVE) >> 23
    return exponent.neg_().clamp_(0, params.top).to(torch.uint8)


def log_dequantize(codes: Tensor, params: LogParams) -> Tensor:
    """The values that the codes stand for, float32, same shape."""
    q = torch.arange(256, device=codes.device)
    octaves = -(-q // params.per_octave)
    odd = q % params.per_octave
    table = torch.ldexp(torch.where(odd == 1, math.sqrt(2.0), 1.0).float(), -octaves)
    if params.zero_code:
        table[params.top] = 0.0
    return table[codes.long()] * params.scale


def log_fake_quantize(x: Tensor, params: LogParams) -> Tensor:
    """``log_dequantize(log_quantize(x))``, float32."""
    return log_dequantize(log_quantize(x, params), params)


def log_accumulate(codes: Tensor, values: Tensor, params: LogParams) -> tuple[Tensor, ...]:
    """Integer accumulators of ``codes @ values``, in units of ``2 ** -DEEPEST``.

    Each is a sum of left shifts, ``values << (DEEPEST - h)``, and exact: one accumulator for log2
    (``h = q``), two for log-sqrt2, of the even codes and of the odd ones (``h = ceil(q / 2)``).

    Args:
        codes: (..., rows, inner) uint8.
        values: (..., inner, columns) int8 or int16 (an int8 matrix less its zero point).
        params: the codes' grid.

    Returns:
        int64 (..., rows, columns), ``per_octave`` of them.

    Raises:
        ValueError: other dtypes, or an ``inner`` so long that int64 could overflow.
    """
    if values.dtype not in (torch.int8, torch.int16) or codes.dtype != torch.uint8:
        raise ValueError(
            f"need uint8 codes and int8 or int16 values, not {codes.dtype}, {values.dtype}"
        )
    inner = codes.shape[-1]
    if inner << (DEEPEST + torch.iinfo(values.dtype).bits - 1) > torch.iinfo(torch.int64).max:
        raise ValueError(f"a sum of {inner} products can overflow 64 bits")
    q = codes.long()
    shifts = DEEPEST - torch.div(
        q + params.per_octave - 1, params.per_octave, rounding_mode="floor"
    )
    weights = torch.bitwise_left_shift(torch.ones_like(q), shifts)
    if params.zero_code:
        weights = weights.masked_fill(q == params.top, 0)
    wide = values.long()
    return tuple(
        (weights * (q % params.per_octave == parity)) @ wide for parity in range(params.per_octave)
    )


def log_matmul(codes: Tensor, values: Tensor, params: LogParams, value_scale: Tensor) -> Tensor:
    """The product that the codes and an integer matrix stand for, from integer accumulators.

    Its only roundings are those of the float64 epilogue,
    ``s * value_scale * 2 ** -DEEPEST * (even + sqrt(2) * odd)``.

    Args:
        codes: (..., rows, inner) uint8.
        values: (..., inner, columns) int8 or int16.
        params: with a scale that broadcasts over the product, so one for a whole row at least.
        value_scale: broadcasts over the product.

    Returns:
        float64 (..., rows, columns).
    """
    if params.scale.dim() and params.scale.shape[-1] != 1:
        raise ValueError("the inner axis of a product cannot have scales of its own")
    even, *odd = log_accumulate(codes, values, params)
    total = even.double()
    for accumulator in odd:
        total += math.sqrt(2.0) * accumulator.double()
    return total * 2.0**-DEEPEST * params.scale.double() * value_scale.double()


class LogQuantizer(nn.Module):
    """Quantizes values of at least 0 to ``scale * 2 ** (-q / per_octave)``.

    Args:
        bits: 1 to 8.
        per_octave: 1 for log2 (DGQ), 2 for log-sqrt2 (RepQuant).
        axes: number of leading axes with run-time scales of their own: 1 sample, 2 sample and head.
            Never 0: a result must not depend on the other images of its batch.
        zero_code: the last code stands for 0.

    Attributes:
        scale: (), the value of code 0; None where it is the largest value at run time.
    """

    scale: Tensor | None

    def __init__(
        self,
        bits: int,
        *,
        per_octave: Literal[1, 2] = 1,
        axes: Literal[1, 2] = 1,
        zero_code: bool = False,
    ) -> None:
        super().__init__()
        self.bits, self.per_octave, self.axes = bits, per_octave, axes
        self.zero_code = zero_code
        self.register_buffer("scale", None)

    def params(self, x: Tensor) -> LogParams:
        """The grid for ``x``, (samples, heads, ...)."""
        if self.scale is not None:
            scale = self.scale.reshape([1] * x.dim())
            return LogParams(scale, self.bits, self.per_octave, self.zero_code)
        return log_params(
            x.detach(),
            self.bits,
            per_octave=self.per_octave,
            axes=self.axes,
            zero_code=self.zero_code,
        )

    def codes(self, x: Tensor) -> tuple[Tensor, LogParams]:
        """Codes (uint8) of ``x`` and their grid."""
        params = self.params(x)
        return log_quantize(x.detach(), params), params

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``; the gradient passes straight through, above the scale it is 0."""
        params = self.params(x)
        passed = torch.where(x <= params.scale, x, x.detach())
        return passed + (log_fake_quantize(x.detach(), params) - passed).detach()

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep: the settings, and the scale where it is static."""
        tensors = {"log": torch.tensor([self.per_octave, self.axes, int(self.zero_code)])}
        return tensors if self.scale is None else {**tensors, "scale": self.scale}

    @classmethod
    def load(cls, bits: int, state: Mapping[str, Tensor]) -> "LogQuantizer":
        """The quantizer whose ``state`` this is.

        Raises:
            BrokenModel: it is no such state.
        """
        per_octave, axes, zero_code = state["log"].tolist()
        if per_octave not in (1, 2) or axes not in (1, 2):
            raise BrokenModel(f"no logarithmic quantizer has the settings {state['log'].tolist()}")
        quantizer = cls(bits, per_octave=per_octave, axes=axes, zero_code=bool(zero_code))
        quantizer.scale = state.get("scale")
        return quantizer
