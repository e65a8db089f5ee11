"""Products of quantized operands, computed on their codes.

Codes less their zero points are small integers. A float32 matmul of them is exact while every
partial sum stays below 2**24, whatever the order of summation: K products of two such codes are
bounded by ``K * top_a * top_b``. Above that bound float64 is used, exact up to 2**53. So fake
quantization and integers give the same sums, and its gradients are those of the straight-through
estimator and of LSQ. Logarithmic codes are summed by shifts (``quantizers.log``).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.affine import round_ste
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.quantizers.log import LogParams, log_matmul

_EXACT_32, _EXACT_64 = 1 << 24, 1 << 53


@dataclass(frozen=True, slots=True)
class OperandCodes:
    """An operand on a uniform grid.

    Attributes:
        values: codes less their zero point, integer-valued float32.
        scale: the value that 1 stands for; broadcasts over ``values``.
        top: largest magnitude of a value.
    """

    values: Tensor
    scale: Tensor
    top: int

    @classmethod
    def of(cls, quantizer: ActQuantizer, x: Tensor) -> "OperandCodes":
        """The codes that the quantizer gives ``x``; differentiable in ``x`` and its ranges."""
        params = quantizer.at(x)
        zero = params.zero_point
        codes = params.clip(round_ste(x.float() * params.scale.reciprocal()) + zero) - zero
        scale = params.scale.reshape(
            [1] * (x.dim() - params.scale.dim()) + list(params.scale.shape)
        )
        low, high = zero.detach().aminmax()
        return cls(codes, scale, math.ceil(max(float(high), params.levels - 1 - float(low))))

    @property
    def transposed(self) -> "OperandCodes":
        """The last two axes changed over."""
        return OperandCodes(self.values.transpose(-1, -2), self.scale.transpose(-1, -2), self.top)

    def rows(self, index: Tensor | slice) -> "OperandCodes":
        """A part of the last axis but one."""
        scale = self.scale if self.scale.shape[-2] == 1 else self.scale[..., index, :]
        return OperandCodes(self.values[..., index, :], scale, self.top)

    def value(self) -> Tensor:
        """The values that the codes stand for."""
        return self.values * self.scale


def exact_dtype(inner: int, top: int) -> torch.dtype:
    """The narrowest float in which ``inner`` products of at most ``top`` sum up exactly.

    Raises:
        ValueError: none does.
    """
    bound = inner * top
    if bound < _EXACT_32:
        return torch.float32
    if bound < _EXACT_64:
        return torch.float64
    raise ValueError(f"a sum of {inner} products of up to {top} is exact in no float")


def code_product(a: OperandCodes, b: OperandCodes, *, integer: bool = False) -> Tensor:
    """``a.value() @ b.value()`` with one exact accumulator for each group of the inner axis.

    Args:
        a: (..., M, K).
        b: (..., K, N).
        integer: sum up int64 numbers, slowly: the oracle that the float sums are held against.

    Returns:
        (..., M, N), float32.
    """
    total: Tensor | None = None
    left = a.transposed  # its inner axis as rows
    for index in _inner_groups(left.scale, b.scale):
        one, other = left.rows(index), b.rows(index)
        exact = torch.int64 if integer else exact_dtype(one.values.shape[-2], a.top * b.top)
        sums = one.values.transpose(-1, -2).to(exact) @ other.values.to(exact)
        term = sums.float() * one.scale[..., :1, :].transpose(-1, -2) * other.scale[..., :1, :]
        total = term if total is None else total + term
    assert total is not None
    return total


def log_product(codes: Tensor, params: LogParams, values: OperandCodes) -> Tensor:
    """``p @ values`` for logarithmic codes of ``p``, by shifts and integer sums.

    Args:
        codes: (..., M, K) uint8.
        params: their grid, one scale for each matrix at least.
        values: (..., K, N).

    Returns:
        (..., M, N), float32.
    """
    total: Tensor | None = None
    for index in _inner_groups(values.scale[..., :1, :], values.scale):
        part = values.rows(index)
        term = log_matmul(
            codes[..., index], part.values.to(torch.int16), params, part.scale[..., :1, :]
        )
        total = term if total is None else total + term
    assert total is not None
    return total.float()


def _inner_groups(*scales: Tensor) -> list[Tensor | slice]:
    """Indices of the inner axis, here the last but one, that share all their scales."""
    length = max(scale.shape[-2] for scale in scales)
    if length == 1:
        return [slice(None)]
    columns = [scale.movedim(-2, 0).flatten(1).expand(length, -1) for scale in scales]
    _, ids = torch.unique(torch.cat(columns, dim=1), dim=0, return_inverse=True)
    return [torch.nonzero(ids == group).flatten() for group in range(int(ids.max()) + 1)]
