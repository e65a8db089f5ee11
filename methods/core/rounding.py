"""AdaRound's soft rounding of one weight (Nagel et al., ICML 2020), with its gradients by hand.

On the small networks of this field the weights, not the activations, are what an iteration spends
its time on. So the grid below each weight is laid out once, the forward pass is four sweeps over
memory, and the rounding penalty gives its gradient without building a graph.
"""

from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.quantizer import QuantParams

LOW, HIGH = -0.1, 1.1
"""Stretch of the rectified sigmoid (AdaRound eq. 23)."""
_SPREAD = HIGH - LOW
_EDGE = 1e-4


class _SoftWeight(torch.autograd.Function):
    """``low + step * clamp(sigmoid(alpha) * spread + LOW, 0, 1)``."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, low: Tensor, step: Tensor) -> Tensor:
        gate = torch.sigmoid(alpha)
        ctx.save_for_backward(gate, step)
        return torch.addcmul(low, step, (gate * _SPREAD).add_(LOW).clamp_(0, 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        gate, step = ctx.saved_tensors
        return _gate_gradient(gate).mul_(step).mul_(grads[0]), None, None


def _gate_gradient(gate: Tensor) -> Tensor:
    """D rounding / d alpha, zero where the stretched sigmoid is cut off."""
    inside = (gate > -LOW / _SPREAD) & (gate < (1 - LOW) / _SPREAD)
    return torch.addcmul(gate, gate, gate, value=-1).mul_(_SPREAD).mul_(inside)


class SoftRounding:
    """Which way each weight will be rounded, still undecided.

    Attributes:
        alpha: what learns; its shape is the weight's. Starts where the soft weight equals the
            weight.
    """

    def __init__(self, weight: Tensor, params: QuantParams) -> None:
        top = params.levels - 1
        position = weight * params.scale.reciprocal()
        floor = torch.floor(position)
        rest = (position - floor).clamp(_EDGE, 1 - _EDGE)
        base = floor + params.zero_point
        free = (base >= 0) & (base < top)  # beyond the grid there is nothing to decide
        self._low = (base.clamp(0, top) - params.zero_point) * params.scale
        self._step = free * params.scale
        self.alpha = nn.Parameter(-torch.log(_SPREAD / (rest - LOW) - 1))

    def weight(self) -> Tensor:
        """The weight at the present rounding; differentiable in ``alpha``."""
        result: Tensor = _SoftWeight.apply(self.alpha, self._low, self._step)
        return result

    def rounding(self) -> Tensor:
        """In [0, 1]: 0 is down, 1 is up."""
        return (torch.sigmoid(self.alpha) * _SPREAD + LOW).clamp(0, 1)

    def up(self) -> Tensor:
        """The hard decision: 1.0 where rounded up."""
        return (self.alpha.detach() >= 0).float()

    @torch.no_grad()
    def add_penalty_gradient(self, strength: float, beta: float) -> None:
        """Add the gradient of ``strength * sum(1 - |2h - 1| ** beta)`` to that of ``alpha``."""
        gate = torch.sigmoid(self.alpha)
        slope = _gate_gradient(gate)
        signed = gate.mul_(_SPREAD).add_(LOW).clamp_(0, 1).mul_(2).sub_(1)
        pull = signed.abs().pow_(beta - 1).mul_(signed.sign_()).mul_(slope)
        if self.alpha.grad is None:
            self.alpha.grad = torch.zeros_like(self.alpha)
        self.alpha.grad.add_(pull, alpha=-2.0 * beta * strength)
