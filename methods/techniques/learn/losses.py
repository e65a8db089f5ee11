"""Losses of reconstruction: the block's output, its layers' outputs, rounding, the method's own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """What the terms of one iteration see.

    Attributes:
        block: name.
        done: share of the iterations behind.
        index: rows of the calibration set, (B,).
        output: of the quantized block.
        target: of the full-precision block on its full-precision input.
        layers: (output, target) of its layers by path, all but the last in execution order; empty
            unless the schedule asks for layer terms.
    """

    block: str
    done: float
    index: Tensor
    output: Tensor
    target: Tensor
    layers: Mapping[str, tuple[Tensor, Tensor]]


Term = Callable[[Step], Tensor]
"""A further loss; differentiable in the step's outputs."""


@dataclass(frozen=True, slots=True)
class RoundingTerm:
    """AdaRound's regulariser (eq. 24): ``strength * sum(1 - |2h - 1| ** beta)``.

    Attributes:
        strength: weight of the term.
        warmup: share of the iterations before it acts.
        beta_start: exponent when it starts to act.
        beta_end: exponent at the last iteration; falls linearly.
        first_part: of a layer with several parts it acts on the first alone, and the roundings of
            the others are never pressed to decide.
    """

    strength: float = 0.01
    warmup: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    first_part: bool = False

    def at(self, done: float) -> tuple[float, float]:
        """Strength and exponent when ``done`` of the iterations is behind."""
        if done < self.warmup:
            return 0.0, self.beta_start
        share = (done - self.warmup) / max(1e-9, 1.0 - self.warmup)
        return self.strength, self.beta_start + (self.beta_end - self.beta_start) * share


def reconstruction_loss(output: Tensor, target: Tensor, norm: float) -> Tensor:
    """``|output - target| ** norm`` summed over channels, mean over the rest."""
    channel = 1 if output.dim() == 4 else -1
    difference = output - target
    power = difference.square() if norm == 2.0 else difference.abs().pow(norm)
    return power.sum(channel).mean()


def layer_loss(step: Step, norm: float) -> Tensor | float:
    """Sum over the block's layers but the last (EDA-DM's fine-grained term)."""
    return sum(reconstruction_loss(ours, wanted, norm) for ours, wanted in step.layers.values())
