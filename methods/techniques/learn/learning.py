"""Switches a set of quantized layers to learning, and freezes them again."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.quantizers.rounding import SoftRounding
from quantarena.methods.core.quantizers.weight import Rounding, WeightQuantizer
from quantarena.methods.techniques.learn.param_groups import NAMES, Group, Learnable

_ROUNDING = {"rounding": Rounding.SOFT, "weight": Rounding.STE, "lora": Rounding.LORA}
_WEIGHT_GROUPS = frozenset(_ROUNDING) | {"weight_scale", "weight_zero"}
_EVERYWHERE = Group(0.0)
"""Stands for settings that nobody gave: all layers learn."""


@dataclass(slots=True)
class Learning:
    """The parameters that learn, until ``finish`` is called.

    Attributes:
        parameters: parameters by group, each with the unit of its learning rate.
        soft_roundings: roundings that are still undecided.
        first_part_roundings: the soft roundings of the first part of each layer.
    """

    parameters: dict[str, list[Learnable]] = field(default_factory=dict)
    soft_roundings: list[SoftRounding] = field(default_factory=list)
    first_part_roundings: list[SoftRounding] = field(default_factory=list)
    _weights: list[tuple[WeightQuantizer, Tensor]] = field(default_factory=list)
    _acts: list[ActQuantizer] = field(default_factory=list)
    _gains: list[nn.Parameter] = field(default_factory=list)

    def finish(self) -> float:
        """Freeze codes and round zero points; returns how far the farthest zero point moved."""
        drift = 0.0
        for quantizer, weight in self._weights:
            quantizer.freeze(weight)
            drift = max(drift, quantizer.drift)
        for act in self._acts:
            drift = max(drift, act.settle())
        for gain in self._gains:
            gain.requires_grad_(False)
        return drift

    def add(
        self,
        group: str,
        parameter: nn.Parameter,
        unit: float,
        *,
        bank: bool = False,
        worth: float = 1.0,
    ) -> None:
        """Add one more parameter to a group; see ``Learnable``."""
        self.parameters.setdefault(group, []).append(Learnable(parameter, unit, bank, worth))


def start_learning(
    layers: Mapping[str, QuantLayer],
    products: Iterable[ActQuantizer],
    groups: Collection[str] | Mapping[str, Group],
    rank: int = 32,
) -> Learning:
    """Let the named groups of parameters in these layers learn.

    Args:
        layers: layers by module path.
        products: activation quantizers outside layers, such as those of attention products.
        groups: names out of ``param_groups.NAMES``; at most one of rounding, weight and lora. Where
            they come with their settings, these say in which of the layers they learn.
        rank: rank of LoRA's factors.

    Raises:
        ValueError: an unknown group, two kinds of rounding, or weights whose codes are fixed.
    """
    if unknown := sorted(set(groups) - set(NAMES)):
        raise ValueError(f"nothing learns under {unknown[0]!r}: known are {', '.join(NAMES)}")
    ways = [way for name, way in _ROUNDING.items() if name in groups]
    if len(ways) > 1:
        raise ValueError(f"a weight rounds one way, not {' and '.join(ways)}")
    learning = Learning()
    settings = groups if isinstance(groups, Mapping) else dict.fromkeys(groups, _EVERYWHERE)
    for name, layer in layers.items():
        here = {group for group, setting in settings.items() if setting.learns(name)}
        for part in layer.parts:
            if part.weight_quantizer is not None and _WEIGHT_GROUPS & here:
                weight = layer.part_weight(part)
                first = part is layer.parts[0]
                _start_weight(name, learning, part.weight_quantizer, weight, here, rank, first)
            if part.static is not None:
                _start_act(learning, part.static, here)
        for option in layer.options:
            for group, parameters in option.parameter_groups().items():
                for parameter in parameters if group in here else ():
                    parameter.requires_grad_(True)
                    learning._gains.append(parameter)
                    learning.add(group, parameter, 1.0, worth=_worth(group, layer))
    for product in products:
        _start_act(learning, product, {g for g, setting in settings.items() if setting.products})
    return learning


def _start_act(learning: Learning, act: ActQuantizer, groups: Collection[str]) -> None:
    wanted = {"scale": "act_scale" in groups, "zero_point": "act_zero" in groups}
    if any(wanted.values()) and act.scale.numel():
        learning._acts.append(act)
        for group, parameter in act.learn(**wanted).items():
            learning.add(group, parameter, _unit(group, act.scale), bank=act.steps > 0)


def _start_weight(
    name: str,
    learning: Learning,
    quantizer: WeightQuantizer,
    weight: Tensor,
    groups: Collection[str],
    rank: int,
    first: bool,
) -> None:
    ways = [way for group, way in _ROUNDING.items() if group in groups]
    if quantizer.codes is not None:
        raise ValueError(f"{name}: its weight codes are fixed, so {', '.join(groups)} cannot learn")
    by_group = quantizer.learn(
        weight,
        rounding=ways[0] if ways else Rounding.NEAREST,
        scale="weight_scale" in groups,
        zero_point="weight_zero" in groups,
        rank=rank,
    )
    for group, parameters in by_group.items():
        for parameter in parameters:
            learning.add(group, parameter, _unit(group, quantizer.scale))
    learning._weights.append((quantizer, weight))
    if quantizer.soft is not None:
        learning.soft_roundings.append(quantizer.soft)
        if first:
            learning.first_part_roundings.append(quantizer.soft)


def _worth(group: str, layer: QuantLayer) -> float:
    """What 1 of a gain stands for: the layer's mean weight scale for its outputs, else 1."""
    quantizers = [part.weight_quantizer for part in layer.parts]
    scales = [float(q.scale.detach().abs().mean()) for q in quantizers if q is not None]
    return sum(scales) / len(scales) if scales and group == "gain_out" else 1.0


def _unit(group: str, scale: Tensor) -> float:
    """Unit of a relative learning rate: one code for roundings and zero points, else a scale."""
    if group in ("rounding", "weight_zero", "act_zero"):
        return 1.0
    return float(scale.detach().abs().mean())
