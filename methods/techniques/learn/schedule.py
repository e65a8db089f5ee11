"""Schedules of block optimisation: which parameters learn, how fast, how long, on which losses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from quantarena.methods.core.lengths import PUBLISHED_ITERATIONS
from quantarena.methods.techniques.learn.losses import RoundingTerm, Term
from quantarena.methods.techniques.learn.param_groups import Decay, Group

FEW_ITERATIONS = 400
LEAST_ITERATIONS = 50
ACT_SCALE_RATE, ACT_SCALE_LENGTH = 5e-3, 160
"""Relative rate of activation scales, and the updates up to which it holds, see ``paced``."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How one block is optimised.

    Attributes:
        iterations: largest number of optimiser steps of a block; 0 leaves it as calibrated.
        groups: which parameters learn, and how fast; keys out of ``param_groups.NAMES``.
        batch: calibration points of one step.
        norm: exponent of the loss ``|difference| ** norm``, which is summed over channels and
            averaged over everything else.
        rounding: regulariser that decides roundings; used only where ``rounding`` learns.
        layers: factor of the losses on the outputs of the block's layers (EDA-DM's gamma).
        mix: probability that a value of the block's stream comes from the full-precision network
            instead of the quantized prefix (QDrop, Wei et al., ICLR 2022).
        act_drop: probability that a value skips its activation quantizer while learning (QDrop).
        rank: rank of LoRA's factors.
        terms: further losses.
        settled: stop once at most this share of the roundings is undecided; 0 runs all iterations.
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
        """AdaRound, with a learning rate that decides every rounding within the iterations.

        At 20,000 iterations this is the published schedule with rate 1e-3; fewer iterations get a
        larger rate.
        """
        return cls(iterations, {"rounding": Group(max(1e-3, paced(0.1, 200, iterations)))})

    @classmethod
    def fast(cls, iterations: int) -> "Schedule":
        """A faster AdaRound: larger rate, stronger regulariser, stop when roundings are decided.

        At 2,000 iterations its loss is below that of the published 20,000, see docs/protocol.md.
        """
        group = Group(paced(0.1, 600, iterations))
        return cls(
            iterations,
            {"rounding": group},
            batch=small_batch(iterations),
            rounding=RoundingTerm(strength=0.1),
            settled=1e-3,
        )

    @classmethod
    def act_scales(cls, iterations: int) -> "Schedule":
        """Activation scales learn by their LSQ gradient, at a relative rate that falls to zero."""
        rates = {"act_scale": (ACT_SCALE_RATE, ACT_SCALE_LENGTH)}
        groups = paced_groups(rates, iterations, Decay.COSINE)
        return cls(iterations, groups, batch=small_batch(iterations), norm=2.4)


def small_batch(iterations: int, few: int = 4) -> int:
    """Points of one step: small batches where iterations are few, 32 where they are many.

    The held-out error is the same in a third of the time, see docs/protocol.md.

    Args:
        iterations: iterations of a block.
        few: points of one step where iterations are few.
    """
    return few if iterations <= FEW_ITERATIONS else 32


def scaled(iterations: int, paper: int, *, least: int = LEAST_ITERATIONS) -> int:
    """Scale the preset's iterations to a method whose paper uses ``paper`` of them, not 20,000.

    The result is at least ``least``, or the preset's own number where that is smaller.
    """
    share = math.ceil(iterations * paper / PUBLISHED_ITERATIONS)
    return max(share, min(iterations, least))


def paced(rate: float, length: int, updates: int) -> float:
    """The learning rate of a run of so many updates: one rule for all methods.

    Adam moves a parameter by about its rate in each update, whatever the size of the gradient. At
    a fixed rate a long run drifts away on the noise of its small batches. So a rate belongs to a
    length. Up to it a run has the rate; a longer one has less, and parameters travel no farther
    than in a run of that length. Twice the rate is twice as far in runs of all lengths.

    Args:
        rate: rate of a run of ``length`` updates or fewer; in the group's unit.
        length: updates that the rate belongs to.
        updates: optimiser steps of this run.
    """
    return rate if updates <= length else rate * length / updates


def paced_groups(
    rates: Mapping[str, tuple[float, int]], updates: int, decay: Decay, *, relative: bool = True
) -> dict[str, Group]:
    """Groups of parameters at rates that fit a run of this length.

    Args:
        rates: by group, a rate and the updates that it belongs to, see ``paced``.
        updates: optimiser steps.
        decay: how the rates fall.
        relative: as in ``Group``.
    """
    return {
        name: Group(paced(rate, length, updates), decay, relative=relative)
        for name, (rate, length) in rates.items()
    }
