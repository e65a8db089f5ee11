"""Freezes weights that oscillate between two codes (Nagel et al., ICML 2022).

Under straight-through gradients a weight near the boundary between two codes is pushed over it and
back. A weight whose code turned back in more than a given share of recent updates is frozen at its
average code.
"""

from dataclasses import dataclass

import torch

from quantarena.methods.core.affine import quantize
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.weight import WeightQuantizer


@dataclass(frozen=True, slots=True)
class Freezing:
    """Rule that decides when a weight is frozen.

    Attributes:
        threshold: share of recent updates in which a weight's code turned back, above which the
            weight is frozen.
        momentum: weight of a new update in the running averages.
    """

    threshold: float = 0.02
    momentum: float = 0.01

    @torch.no_grad()
    def watch(self, model: QuantizedModel) -> "Freezer":
        """Start watching the weights of this model that learn."""
        quantizers = [
            part.weight_quantizer for layer in model.layers.values() for part in layer.parts
        ]
        return Freezer(
            [_Watched(q) for q in quantizers if q is not None and q.master is not None], self
        )


class _Watched:
    """One weight tensor with the history of its codes."""

    def __init__(self, quantizer: WeightQuantizer) -> None:
        assert quantizer.master is not None
        self.quantizer, self.master = quantizer, quantizer.master
        self.codes = quantize(self.master.detach(), quantizer.params)
        self.mean = self.codes.clone()
        self.turn = torch.zeros_like(self.codes)
        self.frequency = torch.zeros_like(self.codes)
        self.frozen = torch.zeros_like(self.codes, dtype=torch.bool)

    def step(self, rule: Freezing) -> None:
        """Count turns after an update, freeze weights, and put frozen weights back."""
        params = self.quantizer.params
        codes = quantize(self.master, params)
        turn = (codes - self.codes).sign()
        back = (turn * self.turn < 0).float()
        self.turn = torch.where(turn != 0, turn, self.turn)
        self.frequency.lerp_(back, rule.momentum)
        self.mean.lerp_(codes, rule.momentum)
        self.mean = torch.where(self.frozen, self.mean.round(), self.mean)
        self.frozen |= self.frequency > rule.threshold
        held = (params.clip(self.mean.round()) - params.zero_point) * params.scale
        self.master.copy_(torch.where(self.frozen, held, self.master))
        self.codes = quantize(self.master, params)


class Freezer:
    """Freezes oscillating weights while they learn."""

    def __init__(self, watched: list[_Watched], rule: Freezing) -> None:
        self.watched, self.rule = watched, rule

    @torch.no_grad()
    def step(self) -> None:
        """Freeze weights; to be called after every update."""
        for one in self.watched:
            one.step(self.rule)

    def share(self) -> float:
        """Share of the weights that are frozen."""
        total = sum(one.frozen.numel() for one in self.watched)
        return sum(int(one.frozen.sum()) for one in self.watched) / max(1, total)
