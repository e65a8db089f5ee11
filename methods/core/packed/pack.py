"""From a quantized model to one on packed weights, and what that one holds."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.attention_hooks import installed
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel, place
from quantarena.methods.core.model.width_budget import WidthBudget
from quantarena.methods.core.network import tensor_bytes
from quantarena.methods.core.packed.footprint import Footprint, footprint
from quantarena.methods.core.packed.lowering.lower import pack_layer
from quantarena.methods.core.packed.native_attention import Native, kernel_products
from quantarena.methods.core.packed.nodes.dense import DenseLayer
from quantarena.methods.core.packed.nodes.fusion import fuse
from quantarena.methods.core.packed.nodes.rebuild import Leaf, leaf_nodes
from quantarena.methods.core.packed.nodes.wrappers import LowRankLayer
from quantarena.methods.core.packed.number_format import tell_formats
from quantarena.methods.core.packed.refusals import refuse_float_tools
from quantarena.methods.core.visits import visiting_as

HOST = torch.device("cpu")
NOTABLE_GROWTH = 0.05
"""Share of a network's bytes from which on layers that grow are named."""


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A network whose quantized layers hold packed codes and nothing else of their weights.

    Attributes:
        module: same forward as the original; runs inside its diffusers pipeline.
        layers: packed layers by module path.
        backend: ``packed`` where the native kernels run, ``reference`` for the slow integer path,
            ``weight-only`` where a layer computes in floating point on packed weights, ``fp32``
            where nothing was quantized.
        clock: the sampler call that tables are read at.
        attention: quantized attention products by module path, in mode ``Native``.
    """

    module: nn.Module
    layers: Mapping[str, nn.Module]
    backend: str
    clock: CallClock = field(default_factory=CallClock)
    attention: Mapping[str, QuantAttention] = field(default_factory=dict)

    def parts(self, name: str) -> list[Leaf]:
        """The packed parts of one layer: all that holds codes."""
        return leaf_nodes(self.layers[name])

    def widths(self) -> dict[str, Bits]:
        """Bits of every layer as its packed tensors hold them; the widest part counts."""
        widths = {}
        for name in self.layers:
            parts = self.parts(name)
            weight = max(round(part.weight_bits_observed) for part in parts)
            widths[name] = Bits(weight, max(part.metadata["act_bits"] for part in parts))
        return widths

    def mean_widths(self) -> dict[str, float]:
        """Mean bits of a weight code of every layer, which a bit map makes fractional."""
        means = {}
        for name in self.layers:
            sizes = [
                (torch.Size(part.weight_shape).numel(), round(part.weight_bits_observed))
                for part in self.parts(name)
            ]
            means[name] = sum(n * b for n, b in sizes) / sum(n for n, _ in sizes)
        return means

    def branches(self) -> dict[str, int]:
        """Values of the branch in floating point beside every layer that has one."""
        return {
            name: count
            for name, layer in self.layers.items()
            if (
                count := sum(
                    node.down.numel() + node.up.numel()
                    for node in layer.modules()
                    if isinstance(node, LowRankLayer)
                )
            )
        }

    def bytes(self) -> int:
        """Bytes of all tensors of the network: codes, scales, padding, float branches."""
        return tensor_bytes(self.module)

    def remarks(self) -> tuple[str, ...]:
        """Lines on layers that quantization makes slower or larger than full precision's."""
        dense = [n for n in self.layers if any(isinstance(p, DenseLayer) for p in self.parts(n))]
        lines = []
        if dense:
            lines.append(
                f"{_several(dense)} in groups: codes are stored densely and multiplied as float32 "
                "numbers, which is slower than full precision"
            )
        larger = {}
        for name, layer in self.layers.items():
            weight = 4 * sum(torch.Size(part.weight_shape).numel() for part in self.parts(name))
            if (growth := tensor_bytes(layer) - weight) > 0:
                larger[name] = growth
        more = sum(larger.values())
        if more > NOTABLE_GROWTH * self.bytes():
            lines.append(
                f"{_several(list(larger))}: packed form takes {more} bytes more than float32 "
                "weights would"
            )
        return tuple(lines)


def _several(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more layers"


def pack(model: QuantizedModel) -> PackedModel:
    """Replace every quantized layer by its packed form.

    The network runs channels-last inside: packed convolutions read the channels of a pixel side by
    side, and attention then needs no transposition of its tokens. Group normalizations and
    activations run natively, see ``nodes.fusion``. It shares the clock of ``model``.

    Codes are packed on the CPU, and the packed network is there, wherever ``model`` is; what runs
    it elsewhere takes it from there, as ``core.cuda.place`` does. Where nothing is quantized, the
    network is that of ``model`` itself.

    Raises:
        Unsupported: a layer has an option without a packed form; the line names both.
    """
    if not (model.layers or model.tables or model.attention):
        return PackedModel(model.module, {}, "fp32", model.clock)
    memo: dict[int, Any] = {id(layer): layer for layer in model.layers.values()}  # replaced below
    memo[id(model.clock)] = model.clock
    module = copy.deepcopy(model.module, memo)
    packed: dict[str, nn.Module] = {}
    for name, layer in model.layers.items():
        try:
            packed[name] = pack_layer(_on_host(layer, model.clock))
        except Unsupported as error:
            raise Unsupported(f"{name}: {error.message}") from None
        place(module, name, packed[name])
    module.to(HOST)
    channels_last(module)
    fuse(module, packed.values())
    refuse_float_tools(module)
    tell_formats(module)
    visiting_as(module, model.module)
    products = installed(module)
    for quant in products.values():
        quant.mode = Native()
    return PackedModel(module, packed, backend_of(packed, products), model.clock, products)


def _on_host(layer: QuantLayer, clock: CallClock) -> QuantLayer:
    """The layer itself where it is on the CPU, else a copy there, on the same clock."""
    if layer.weight.device == HOST:
        return layer
    return copy.deepcopy(layer, {id(clock): clock}).to(HOST)


def backend_of(layers: Mapping[str, nn.Module], attention: Mapping[str, QuantAttention]) -> str:
    """The slowest backend among the leaves of packed layers.

    Without any layer that of the attention products. Beside layers these do not count: where no
    kernel applies, their codes are summed up in floating point, exactly.
    """
    backends = {leaf.backend for layer in layers.values() for leaf in leaf_nodes(layer)}
    for name in ("reference", "weight-only", "packed"):
        if name in backends:
            return name
    if not attention:
        return "fp32"
    products = [kernel_products(quant) for quant in attention.values()]
    return "packed" if all(p is not None and p.apply() for p in products) else "reference"


def channels_last(module: nn.Module) -> nn.Module:
    """Make a network take and keep its images channels-last; 4-d inputs are converted on entry."""
    # Not Module.to: it refuses 5-d weights, which Conv3d has.
    module._apply(_last)  # type: ignore[no-untyped-call]
    module.register_forward_pre_hook(_convert, with_kwargs=True)
    return module


def _convert(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return tuple(_last(a) for a in args), {k: _last(v) for k, v in kwargs.items()}


def _last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.to(memory_format=torch.channels_last)
    return value


def observe(
    model: QuantizedModel,
    packed: PackedModel,
    original: nn.Module,
    budget: WidthBudget | None = None,
) -> Footprint:
    """Bits, bytes, coverage and bit operations of the packed network.

    Args:
        model: what a method made.
        packed: packed from ``model``.
        original: the full-precision network.
        budget: what widths and branches may cost under policy ``budget``; the observed ones
            count.

    Raises:
        QuantArenaError: declared widths are not those observed, or these exceed the budget
            together with branches in floating point.
    """
    widths, means = packed.widths(), packed.mean_widths()
    found = footprint(
        model.graph,
        widths,
        original,
        packed.bytes(),
        means=means,
        layers=model.layers,
        attention=packed.attention,
        tabulated=model.tables,
    )
    if budget is not None:
        budget.without(model.graph.inside(model.tables)).require(widths, means, packed.branches())
    return found
