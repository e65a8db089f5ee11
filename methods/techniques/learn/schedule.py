"""How one block is optimised: what learns, how fast, for how long, under which losses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from quantarena.methods.techniques.learn.losses import RoundingTerm, Term
from quantarena.methods.techniques.learn.param_groups import Decay, Group

FEW_ITERATIONS = 400
LEAST_ITERATIONS = 50
ADAROUND_ITERATIONS = 20_000
"""What presets count in."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How one block is optimised.

    Attributes:
        iterations: optimiser steps a block at most; 0 leaves the block as calibrated.
        groups: what learns, by a name out of ``groups.NAMES``.
        batch: calibration points a step.
        norm: the loss is ``|difference| ** norm``, summed over channels, mean over the rest.
        rounding: the term that decides roundings; acts where ``rounding`` learns.
        layers: weight of the layers' own losses, all but the last (EDA-DM's gamma).
        mix: probability that a value of the block's input is the full-precision network's instead
            of the quantized prefix's (QDrop, Wei et al., ICLR 2022); other inputs are not mixed.
        act_drop: probability that a value skips its activation quantizer while learning (QDrop).
        rank: of LoRA.
        terms: further losses.
        settled: stop once at most this share of the roundings is still undecided; 0 waits for all
            iterations.
    """

    iterations: int
    groups: Mapping[str, Group]
    batch: int = 32
    norm: float = 2.0
    rounding: RoundingTerm = field(default_factory=RoundingTerm)
    layers: float = 0.0
    mix: float = 0.0
    act_drop: float = 0.0
    rank: int = 32
    terms: tuple[Term, ...] = ()
    settled: float = 0.0

    @classmethod
    def adaround(cls, iterations: int) -> "Schedule":
        """Rounding by AdaRound, with the learning rate that has time to decide.

        At 20,000 iterations it is the published schedule, 1e-3; the rate grows as they shrink.
        """
        lr = min(0.1, 1e-3 * max(1.0, 20_000 / max(1, iterations)))
        return cls(iterations, {"rounding": Group(lr)})

    @classmethod
    def fast(cls, iterations: int) -> "Schedule":
        """AdaRound decided sooner: larger rate, stronger regulariser, stop when all is decided.

        At 2,000 iterations it ends below the loss of the published 20,000, see docs/protocol.md.
        """
        group = Group(min(0.1, 60 / max(1, iterations)))
        return cls(
            iterations,
            {"rounding": group},
            batch=small_batch(iterations),
            rounding=RoundingTerm(strength=0.1),
            settled=1e-3,
        )

    @classmethod
    def act_scales(cls, iterations: int) -> "Schedule":
        """Activation scales by their LSQ gradient, relative to their size, falling to zero."""
        group = Group(5e-3, Decay.COSINE, relative=True)
        return cls(iterations, {"act_scale": group}, batch=small_batch(iterations), norm=2.4)


def small_batch(iterations: int, few: int = 4) -> int:
    """Points a step: where steps are few, more of them on fewer points reach further.

    Level in held-out error at a third of the time, see docs/protocol.md.

    Args:
        iterations: of a block.
        few: points a step where iterations are few; 32 where they are many.
    """
    return few if iterations <= FEW_ITERATIONS else 32


def scaled(iterations: int, paper: int) -> int:
    """Iterations of a method whose paper has ``paper`` of them where AdaRound's users have 20,000.

    Not less than 50, as far as the preset has them: what learns has to get somewhere.
    """
    share = math.ceil(iterations * paper / ADAROUND_ITERATIONS)
    return max(share, min(iterations, LEAST_ITERATIONS))
