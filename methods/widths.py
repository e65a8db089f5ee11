"""Widths that a policy gives to a network, and the check that a finished model holds them."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.bits import AttentionBits, Bits, parse_bits
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.model.policy import Policy
from quantarena.methods.core.trace.network import Graph

DECLARED = "declared_widths"
"""The entry of a model's notes that lists the widths in which a method departs from the policy."""


@dataclass(frozen=True, slots=True)
class Widths:
    """The widths of one network.

    Attributes:
        layers: bits of every layer by module path, layers in floating point included.
        attention: bits of the quantized attention products by module path.
    """

    layers: Mapping[str, Bits]
    attention: Mapping[str, AttentionBits]

    @classmethod
    def of(cls, policy: Policy, graph: Graph, bits: Bits) -> "Widths":
        """What a policy assigns when these bits are requested."""
        return cls(policy.assign(graph, bits), policy.assign_attention(graph, bits))

    def changes(self, other: "Widths") -> dict[str, Any]:
        """How another assignment for the network differs, as plain data; empty if it does not."""
        layers = {n: str(b) for n, b in other.layers.items() if b != self.layers[n]}
        attention = {
            name: list(astuple(bits)) if (bits := other.attention.get(name)) else None
            for name in sorted({*self.attention, *other.attention})
            if self.attention.get(name) != other.attention.get(name)
        }
        both = {"layers": layers, "attention": attention}
        return {kind: changed for kind, changed in both.items() if changed}

    def changed(self, changes: Mapping[str, Any]) -> "Widths":
        """These widths with the changes of ``changes`` applied."""
        layers = {n: parse_bits(text) for n, text in changes.get("layers", {}).items()}
        attention = dict(self.attention)
        for name, bits in changes.get("attention", {}).items():
            attention.pop(name, None)
            if bits is not None:
                attention[name] = AttentionBits(*bits)
        return Widths({**self.layers, **layers}, attention)


def verify(model: QuantizedModel, wanted: Widths, name: str) -> None:
    """Check the contract: the widths that were declared, and every range set and finite.

    Quantized layers that tables stand for count as layers.

    Args:
        model: what a method made.
        wanted: the harness's own widths, with the changes that the model's notes declare.
        name: of the method, for messages.

    Raises:
        QuantArenaError: naming the method, the layer and what is wrong.
    """
    layers = {path: bits for path, bits in wanted.layers.items() if not bits.is_fp}
    made = {**model.layers, **model.replaced}
    if set(layers) != set(made):
        odd = sorted(set(layers) ^ set(made))
        raise QuantArenaError(f"{name}: policy and model disagree about {_few(odd)}")
    for path, layer in made.items():
        if layer.bits != layers[path]:
            raise QuantArenaError(f"{name}: {path} is {layer.bits}, the policy says {layers[path]}")
        for part in layer.parts:
            quantizers = {"weight": part.weight_quantizer, "activation": part.static}
            for side, quantizer in quantizers.items():
                if quantizer is not None:
                    _check_scale(f"{name}: {path}", side, quantizer.scale)
    if wanted.attention != {path: products.bits for path, products in model.attention.items()}:
        raise QuantArenaError(f"{name}: policy and model disagree about attention products")
    for path, products in model.attention.items():
        if missing := products.unset():
            raise QuantArenaError(f"{name}: {path} has no range of its {missing[0]}")


def _check_scale(where: str, side: str, scale: Tensor) -> None:
    if scale.numel() == 0:
        raise QuantArenaError(f"{where} has no {side} range")
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise QuantArenaError(f"{where} has a {side} scale that is not positive and finite")


def _few(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
