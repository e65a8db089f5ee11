"""AdaRound's soft rounding of one weight (Nagel et al., ICML 2020), with its gradients by hand.

On the small networks of this field the weights, not the activations, are what an iteration spends
its time on. So the grid below each weight is laid out once, the rounding penalty joins the backward
pass, which has all that it needs at hand, and each pass is one sweep over memory where the native
library is at hand (``kernels.soft_weight``), a few where it is not.
"""

from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.affine import QuantParams
from quantarena.methods.core.kernels import soft_weight

LOW, HIGH = -0.1, 1.1
"""Stretch of the rectified sigmoid (AdaRound eq. 23)."""
_SPREAD = HIGH - LOW
_CUT = (-LOW / _SPREAD, (1 - LOW) / _SPREAD)
"""The sigmoid's values between which the rounding is neither down nor up."""
_EDGE = 1e-4
_TINY = 1e-30
"""Keeps the logarithm finite where a rounding is exactly undecided."""


class _SoftWeight(torch.autograd.Function):
    """``low + step * h`` with ``h = clamp(sigmoid(alpha) * spread + LOW, 0, 1)``.

    ``base`` and ``reach`` are ``low + step * LOW`` and ``step * spread``, so that the stretch costs
    nothing. The backward pass adds the gradient of ``strength * sum(1 - |2h - 1| ** beta)``.
    """

    @staticmethod
    def forward(
        ctx: Any, alpha: Tensor, base: Tensor, reach: Tensor, strength: float, beta: float
    ) -> Tensor:
        ctx.penalty = strength, beta
        native = soft_weight.find(alpha, base, reach)
        if native is not None:  # one sweep each way; the sigmoid is cheaper than its storage
            ctx.native = native
            ctx.save_for_backward(alpha, reach)
            return native.weight(alpha, base, reach, _CUT)
        ctx.native = None
        gate = torch.sigmoid(alpha)
        ctx.save_for_backward(gate, reach)
        return torch.addcmul(base, reach, gate.clamp(*_CUT))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        gate, reach = ctx.saved_tensors
        strength, beta = ctx.penalty
        if ctx.native is not None:
            line = 2 * _SPREAD, 2 * LOW - 1
            gradient = ctx.native.gradient(gate, reach, grads[0], _CUT, line, strength, beta)
            return gradient, None, None, None, None
        pull = grads[0] * reach
        if strength:
            pull.add_(_slope(gate, beta), alpha=-2.0 * beta * strength * _SPREAD)
        inner = torch.ops.aten.hardtanh_backward(pull, gate, *_CUT)  # zero where cut off
        return torch.ops.aten.sigmoid_backward(inner, gate), None, None, None, None


def _slope(gate: Tensor, beta: float) -> Tensor:
    """``|2h - 1| ** (beta - 1)`` with the sign of ``2h - 1``; a logarithm is faster than a power.

    Where the stretched sigmoid is cut off the value is meaningless; the caller drops it.
    """
    signed = (gate * (2 * _SPREAD)).add_(2 * LOW - 1)
    size = signed.square().clamp_min_(_TINY).log_().mul_((beta - 2) / 2).exp_()
    return size.mul_(signed)


class SoftRounding:
    """The direction in which each weight will be rounded, while it is still undecided.

    Attributes:
        alpha: the parameter that learns, in the weight's shape. At first the soft weight equals
            the weight.
        penalty: strength and exponent of the rounding term (AdaRound eq. 24), whose gradient the
            next backward passes through ``weight`` add; strength 0 is none.
    """

    def __init__(self, weight: Tensor, params: QuantParams) -> None:
        top = params.levels - 1
        position = weight * params.scale.reciprocal()
        floor = torch.floor(position)
        rest = (position - floor).clamp(_EDGE, 1 - _EDGE)
        base = floor + params.zero_point
        free = (base >= 0) & (base < top)  # beyond the grid there is nothing to decide
        step = free * params.scale
        low = (base.clamp(0, top) - params.zero_point) * params.scale
        self._base, self._reach = low + step * LOW, step * _SPREAD
        self.alpha = nn.Parameter(-torch.log(_SPREAD / (rest - LOW) - 1))
        self.penalty = (0.0, 2.0)

    def weight(self) -> Tensor:
        """The weight at the present rounding; differentiable in ``alpha``."""
        result: Tensor = _SoftWeight.apply(self.alpha, self._base, self._reach, *self.penalty)
        return result

    def rounding(self) -> Tensor:
        """In [0, 1]: 0 is down, 1 is up."""
        return (torch.sigmoid(self.alpha) * _SPREAD + LOW).clamp(0, 1)

    def up(self) -> Tensor:
        """The hard decision: 1.0 where rounded up."""
        return (self.alpha.detach() >= 0).float()
