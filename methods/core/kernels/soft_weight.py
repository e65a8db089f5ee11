"""AdaRound's soft weight and its gradient in one native sweep each (``csrc/rounding.cpp``)."""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.build import LIBRARY_NAME

_count, _ptr, _float = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float


class SoftWeight:
    """The two native functions. All tensors are float32, contiguous, on the CPU and of one size."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._weight, self._gradient = library.qa_soft_weight, library.qa_soft_gradient
        self._weight.argtypes = [_count, _ptr, _ptr, _ptr, _float, _float, _ptr]
        self._gradient.argtypes = [_count, _ptr, _ptr, _ptr, *[_float] * 6, _ptr]
        self._weight.restype = self._gradient.restype = None

    def weight(
        self, alpha: Tensor, base: Tensor, reach: Tensor, cut: tuple[float, float]
    ) -> Tensor:
        """Computes ``base + reach * clamp(sigmoid(alpha), *cut)``."""
        result = torch.empty_like(base)
        self._weight(
            alpha.numel(),
            alpha.data_ptr(),
            base.data_ptr(),
            reach.data_ptr(),
            *cut,
            result.data_ptr(),
        )
        return result

    def gradient(
        self,
        alpha: Tensor,
        reach: Tensor,
        grad: Tensor,
        cut: tuple[float, float],
        line: tuple[float, float],
        strength: float,
        beta: float,
    ) -> Tensor:
        """Computes the gradient of ``alpha``, with that of ``strength * sum(1 - |h| ** beta)``.

        Args:
            alpha: the learned parameter.
            reach: as in ``weight``.
            grad: gradient of the weight.
            cut: as in ``weight``.
            line: ``h = line[0] * sigmoid(alpha) + line[1]``.
            strength: factor of the penalty; 0 leaves it out.
            beta: exponent of the penalty, at least 2.
        """
        result, grad = torch.empty_like(alpha), grad.contiguous()
        self._gradient(
            alpha.numel(),
            alpha.data_ptr(),
            reach.data_ptr(),
            grad.data_ptr(),
            *cut,
            *line,
            strength,
            beta,
            result.data_ptr(),
        )
        return result


@cache
def _load() -> SoftWeight | None:
    if native.library().run is None:
        return None
    try:
        return SoftWeight(ctypes.CDLL(str(Path(__file__).resolve().parent / LIBRARY_NAME)))
    except (OSError, AttributeError):
        return None


def find(*tensors: Tensor) -> SoftWeight | None:
    """The native functions; None where there are none or they cannot take these tensors."""
    fits = all(t.dtype is torch.float32 and t.is_cpu and t.is_contiguous() for t in tensors)
    return _load() if fits else None
