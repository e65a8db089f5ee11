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
"""The groups of parameters that can learn."""


class Decay(StrEnum):
    """How a learning rate falls over the iterations."""

    CONSTANT = "constant"
    COSINE = "cosine"
    LINEAR = "linear"

    def factor(self, done: float) -> float:
        """Share of the learning rate that is left after the share ``done``, in [0, 1]."""
        if self is Decay.COSINE:
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1.0 - done if self is Decay.LINEAR else 1.0


@dataclass(frozen=True, slots=True)
class Group:
    """How one kind of parameter learns.

    Attributes:
        lr: Adam's learning rate.
        decay: how the rate falls. Rounding under its regulariser needs a constant rate: the last
            weights are decided at the end, where a falling rate would be near zero.
        relative: the rate is relative to each parameter's own unit: the mean of a scale, the mean
            weight scale for a weight or its LoRA factors, 1 for roundings and zero points.
        weight_decay: weight decay of AdamW.
    """

    lr: float
    decay: Decay = Decay.CONSTANT
    relative: bool = False
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class Learnable:
    """A parameter and the unit of its relative learning rate."""

    parameter: nn.Parameter
    unit: float = 1.0


class Optimiser:
    """Adam over groups whose learning rates follow their schedules."""

    def __init__(
        self, parameters: Mapping[str, Iterable[Learnable]], groups: Mapping[str, Group]
    ) -> None:
        self._decays: list[tuple[Decay, float]] = []
        by_rate: dict[tuple[str, float], list[nn.Parameter]] = {}  # few groups: each one costs
        for name, learnables in parameters.items():
            for learnable in learnables:
                unit = learnable.unit if groups[name].relative else 1.0
                by_rate.setdefault((name, groups[name].lr * unit), []).append(learnable.parameter)
        options: list[dict[str, Any]] = []
        for (name, rate), members in by_rate.items():
            decay = groups[name].weight_decay
            self._decays.append((groups[name].decay, rate))
            options.append({"params": members, "lr": rate, "weight_decay": decay})
        # fused: one sweep over memory instead of seven; without weight decay AdamW is Adam
        self._adam = torch.optim.AdamW(options, fused=True)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self._adam.zero_grad(set_to_none=True)

    def step(self, done: float) -> None:
        """Make one update, with the learning rates after the share ``done`` of the iterations."""
        for options, (decay, rate) in zip(self._adam.param_groups, self._decays, strict=True):
            options["lr"] = rate * decay.factor(done)
        self._adam.step()
