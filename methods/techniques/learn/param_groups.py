"""Groups of parameters, each with its own learning rate and schedule, under one Adam."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import nn

NAMES = (
    "rounding",
    "weight",
    "lora",
    "weight_scale",
    "weight_zero",
    "act_scale",
    "act_zero",
    "gain_in",
    "gain_out",
)
"""What can learn."""


class Decay(StrEnum):
    """How a learning rate falls over the iterations."""

    CONSTANT = "constant"
    COSINE = "cosine"
    LINEAR = "linear"

    def factor(self, done: float) -> float:
        """Share of the learning rate left when ``done``, in [0, 1], is behind."""
        if self is Decay.COSINE:
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1.0 - done if self is Decay.LINEAR else 1.0


@dataclass(frozen=True, slots=True)
class Group:
    """How one kind of parameter learns.

    Attributes:
        lr: Adam's learning rate.
        decay: of that rate. Rounding under its regulariser needs a constant one: the term has to
            decide the last weights at the end, when a rate that falls would be gone.
        relative: the rate is a share of each parameter's own unit: the mean of a scale, the mean
            weight scale for a weight or its LoRA, 1 for rounding and zero points.
        weight_decay: AdamW's.
    """

    lr: float
    decay: Decay = Decay.CONSTANT
    relative: bool = False
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class Learnable:
    """A parameter and the unit that its relative learning rate is in."""

    parameter: nn.Parameter
    unit: float = 1.0


class Optimiser:
    """Adam over groups whose learning rates follow their schedules."""

    def __init__(
        self, found: Mapping[str, Iterable[Learnable]], groups: Mapping[str, Group]
    ) -> None:
        self._decays: list[tuple[Decay, float]] = []
        alike: dict[tuple[str, float], list[nn.Parameter]] = {}  # few groups: a call costs
        for name, learnables in found.items():
            for learnable in learnables:
                unit = learnable.unit if groups[name].relative else 1.0
                alike.setdefault((name, groups[name].lr * unit), []).append(learnable.parameter)
        options: list[dict[str, Any]] = []
        for (name, rate), parameters in alike.items():
            decay = groups[name].weight_decay
            self._decays.append((groups[name].decay, rate))
            options.append({"params": parameters, "lr": rate, "weight_decay": decay})
        # fused: one sweep over memory, not seven; without weight decay AdamW is Adam
        self._adam = torch.optim.AdamW(options, fused=True)

    def zero_grad(self) -> None:
        """Forget gradients."""
        self._adam.zero_grad(set_to_none=True)

    def step(self, done: float) -> None:
        """One update, when ``done`` of the iterations is behind."""
        for options, (decay, rate) in zip(self._adam.param_groups, self._decays, strict=True):
            options["lr"] = rate * decay.factor(done)
        self._adam.step()
