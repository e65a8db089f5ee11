"""Losses of block reconstruction: on the block's output, its layers' outputs and roundings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class TermInputs:
    """Inputs of the loss terms in one iteration.

    Attributes:
        block: name of the block.
        done: share of the iterations that have run.
        index: rows of the calibration set in this batch, (B,).
        output: output of the quantized block.
        target: output of the full-precision block on its full-precision input.
        layers: (output, target) of the block's layers by path, without the last one in execution
            order; empty unless the schedule asks for layer losses.
    """

    block: str
    done: float
    index: Tensor
    output: Tensor
    target: Tensor
    layers: Mapping[str, tuple[Tensor, Tensor]]


Term = Callable[[TermInputs], Tensor]
"""A further loss of a method; differentiable in the outputs of its inputs."""


@dataclass(frozen=True, slots=True)
class RoundingTerm:
    """AdaRound's regulariser (eq. 24): ``strength * sum(1 - |2h - 1| ** beta)``.

    Attributes:
        strength: factor of the term.
        warmup: share of the iterations in which the term is off.
        beta_start: exponent right after the warm-up.
        beta_end: exponent at the last iteration; it falls linearly.
        first_part: in a layer with several parts, regularise the first part only; nothing makes
            the roundings of the other parts decide.
    """

    strength: float = 0.01
    warmup: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    first_part: bool = False

    def at(self, done: float) -> tuple[float, float]:
        """Strength and exponent in the iteration with which the share ``done`` is reached.

        As in the official code, iterations count from 1: the first of n has the share 1 / n, and
        the last has ``beta_end``.
        """
        if done < self.warmup:
            return 0.0, self.beta_start
        share = (done - self.warmup) / max(1e-9, 1.0 - self.warmup)
        return self.strength, self.beta_start + (self.beta_end - self.beta_start) * share


def reconstruction_loss(output: Tensor, target: Tensor, norm: float) -> Tensor:
    """``|output - target| ** norm``, summed over channels and averaged over everything else."""
    channel = 1 if output.dim() == 4 else -1
    difference = output - target
    power = difference.square() if norm == 2.0 else difference.abs().pow(norm)
    return power.sum(channel).mean()


def layer_loss(inputs: TermInputs, norm: float) -> Tensor | float:
    """Sum of the losses of the block's layers but the last (EDA-DM's fine-grained term)."""
    return sum(
        reconstruction_loss(output, target, norm) for output, target in inputs.layers.values()
    )
