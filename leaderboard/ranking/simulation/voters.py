"""Planted skills and voters who see them with noise, or vote at random."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantarena.leaderboard.ranking.votes import Floats, Vote

TRUTHS = ("even", "normal")


@dataclass(frozen=True, slots=True)
class Regime:
    """How voters behave.

    Attributes:
        noise: standard deviation of the Gaussian noise of each look, in standard deviations of
            the skills; 0 gives votes without error.
        random: chance that a vote is a uniformly random order.
        truth: ``even`` for skills at equal distances with standard deviation 1, as the labels
            1..N of K-Sort's study; ``normal`` for draws from N(0, 1).
    """

    noise: float = 0.5
    random: float = 0.0
    truth: str = "even"

    def __post_init__(self) -> None:
        if self.truth not in TRUTHS:
            raise ValueError(f"unknown truth {self.truth!r}: one of {', '.join(TRUTHS)}")
        if self.noise < 0 or not 0 <= self.random <= 1:
            raise ValueError("noise must not be negative, and random is a share from 0 to 1")


def skills(count: int, regime: Regime, rng: np.random.Generator) -> Floats:
    """Planted skills, (count,), in random order."""
    if regime.truth == "normal":
        return np.asarray(rng.normal(size=count))
    labels = rng.permutation(count) - (count - 1) / 2.0
    return np.asarray(labels / max(float(labels.std()), 1e-12))


def cast_vote(
    names: Sequence[str], skill: Floats, regime: Regime, rng: np.random.Generator, unit: str
) -> Vote:
    """The vote of one simulated person on these contestants.

    Args:
        names: the K contestants shown.
        skill: (K,) their skills.
        regime: how people vote.
        rng: what the noise is drawn from; three draws whatever the outcome.
        unit: name of the prompt.
    """
    chance, looks = rng.random(), skill + regime.noise * rng.normal(size=len(skill))
    shuffled = rng.permutation(len(skill))
    order = shuffled if chance < regime.random else np.argsort(-looks, kind="stable")
    return Vote(unit, tuple(names), tuple((names[number],) for number in order), "simulated")
