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
_SCALES = frozenset({"weight_scale", "act_scale"})
LEAST_SCALE = 1 / 16
"""A scale that learns stays above this share of where it began: nothing is quantized at 0 or less.
Adam's steps do not shrink with the scale, so that a long run can walk through zero."""


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
            weight scale for a weight or its LoRA factors, 1 for roundings, zero points and gains.
        most: largest rate, as a share of the parameter's unit. Where a layer has more bits than
            requested its scales are narrower, and an absolute rate can be most of one.
        weight_decay: weight decay of AdamW.
        layers: paths of the layers whose parameters learn; None for all layers.
        products: whether those of attention products learn too.
    """

    lr: float
    decay: Decay = Decay.CONSTANT
    relative: bool = False
    most: float = math.inf
    weight_decay: float = 0.0
    layers: frozenset[str] | None = None
    products: bool = True

    def rate(self, unit: float, worth: float = 1.0) -> float:
        """Adam's learning rate for a parameter of this unit and worth, see ``Learnable``."""
        return min(self.lr * unit if self.relative else self.lr / worth, self.most * unit)

    def learns(self, layer: str) -> bool:
        """Whether the parameters of this layer learn."""
        return self.layers is None or layer in self.layers


@dataclass(frozen=True, slots=True)
class Learnable:
    """A parameter that learns.

    Attributes:
        parameter: the parameter.
        unit: unit of its relative learning rate.
        bank: whether each index into the first axis learns on its own, as the ranges of a sampler
            call do: one without a row in a batch has no gradient, and does not move.
        worth: what 1 of the parameter stands for where papers state absolute rates. Output gains
            are relative to their layer's weight scales here, and include them in the papers.
    """

    parameter: nn.Parameter
    unit: float = 1.0
    bank: bool = False
    worth: float = 1.0


class _Bank:
    """A parameter whose entries are, to the optimiser, parameters of their own.

    Under one parameter, Adam's momentum would move entries that had no row in the batch, and its
    bias correction would count updates that they had no part in.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        # they share the parameter's memory
        self.entries = [nn.Parameter(entry) for entry in parameter.detach().unbind(0)]

    def share_gradient(self) -> None:
        """Give the entries that are not zero in the parameter's gradient their share of it."""
        gradient = self.parameter.grad
        present = [] if gradient is None else gradient.reshape(len(gradient), -1).any(1).tolist()
        for index, entry in enumerate(self.entries):
            entry.grad = gradient[index] if gradient is not None and present[index] else None


class Optimiser:
    """Adam over groups whose learning rates follow their schedules."""

    def __init__(
        self, parameters: Mapping[str, Iterable[Learnable]], groups: Mapping[str, Group]
    ) -> None:
        self._decays: list[tuple[Decay, float]] = []
        self._banks: list[_Bank] = []
        self._scales: list[torch.Tensor] = []
        self._floors: list[torch.Tensor] = []
        by_rate: dict[tuple[str, float], list[nn.Parameter]] = {}  # few groups: each one costs
        for name, learnables in parameters.items():
            for learnable in learnables:
                rate = groups[name].rate(learnable.unit, learnable.worth)
                members = by_rate.setdefault((name, rate), [])
                if name in _SCALES:
                    self._scales.append(learnable.parameter)
                    self._floors.append(learnable.parameter.detach() * LEAST_SCALE)
                if learnable.bank:
                    self._banks.append(_Bank(learnable.parameter))
                    members += self._banks[-1].entries
                else:
                    members.append(learnable.parameter)
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
        for bank in self._banks:
            bank.parameter.grad = None

    def step(self, done: float) -> None:
        """Make one update, with the learning rates after the share ``done`` of the iterations."""
        for options, (decay, rate) in zip(self._adam.param_groups, self._decays, strict=True):
            options["lr"] = rate * decay.factor(done)
        for bank in self._banks:
            bank.share_gradient()
        self._adam.step()
        if self._scales:
            with torch.no_grad():
                for scale, floor in zip(self._scales, self._floors, strict=True):
                    scale.clamp_(min=floor)
