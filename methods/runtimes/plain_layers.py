"""A packed network as an ordinary one, whose integer layers another runtime fills in.

Converters of other runtimes read ordinary modules. So each packed layer is replaced by plain layers
of the same geometry with random weights, and their codes, scales and zero points are handed over
beside them, by module path. What cannot be expressed so is refused by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.model.model import place
from quantarena.methods.core.model.time_table import ScheduledTable
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.k_groups import GroupedLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.node import Node, node_of
from quantarena.methods.core.packed.nodes.wrappers import MixedWidthLayer
from quantarena.methods.core.packed.pack import PackedModel


@dataclass(frozen=True, slots=True)
class Plain:
    """An ordinary network and what its integer layers hold.

    Attributes:
        module: with a plain layer of random weights for each integer layer.
        layers: the integer layers by module path.
    """

    module: nn.Module
    layers: dict[str, IntegerLayer]


class Parts(nn.Module):
    """The sum of layers over consecutive ranges of input channels."""

    order: Tensor | None

    def __init__(
        self, parts: Sequence[nn.Module], sizes: Sequence[int], dim: int, order: Tensor | None
    ) -> None:
        super().__init__()
        self.parts, self.sizes, self.dim = nn.ModuleList(parts), list(sizes), dim
        self.register_buffer("order", None if order is None else order.long())

    def forward(self, x: Tensor) -> Tensor:
        """See ``SplitPackedLayer``."""
        if self.order is not None:
            x = x.index_select(self.dim, self.order)
        pieces = torch.split(x, self.sizes, self.dim)
        first, *rest = (part(piece) for part, piece in zip(self.parts, pieces, strict=True))
        total: Tensor = sum(rest, first)
        return total


class SideBySide(nn.Module):
    """Layers whose output channels are put in order."""

    back: Tensor

    def __init__(self, parts: Sequence[nn.Module], back: Tensor, dim: int) -> None:
        super().__init__()
        self.parts, self.dim = nn.ModuleList(parts), dim
        self.register_buffer("back", back.long())

    def forward(self, x: Tensor) -> Tensor:
        """See ``MixedWidthLayer``."""
        return torch.cat([part(x) for part in self.parts], self.dim).index_select(
            self.dim, self.back
        )


def plain_network(packed: PackedModel) -> Plain:
    """The ordinary network of a packed one.

    Raises:
        Unsupported: something cannot be expressed: ranges by sampler call, ranges at run time or by
            row, integer attention products, tables.
    """
    if packed.attention:
        raise Unsupported(f"attention products of {min(packed.attention)} are in integers")
    for path, module in packed.module.named_modules():
        if isinstance(module, ScheduledTable):
            raise Unsupported(f"{path} is a table by sampler call")
    skeleton = _skeleton(packed)
    layers: dict[str, IntegerLayer] = {}
    for path, node in packed.layers.items():
        place(skeleton, path, _plain(node_of(node), path, layers))
    return Plain(skeleton.eval().requires_grad_(False), layers)


def _skeleton(packed: PackedModel) -> nn.Module:
    """The network as its configuration builds it, with the packed one's floating-point parts."""
    own = type(packed.module)
    kind = getattr(own, "packed_from", own)  # one that was loaded has a class for packed networks
    config = getattr(packed.module, "config", None)
    if config is None or not hasattr(kind, "from_config"):
        raise Unsupported(f"{kind.__name__} is no network of diffusers")
    network: nn.Module = kind.from_config(config)
    held = packed.module.state_dict()
    inside = tuple(f"{path}." for path in packed.layers)
    wanted = {n: v for n, v in network.state_dict().items() if not n.startswith(inside)}
    extra = [name for name in held if name not in wanted and not name.startswith(inside)]
    absent = [name for name in wanted if name not in held]
    if extra or absent:
        raise Unsupported(f"{min(extra or absent)} has no place in a {kind.__name__}")
    network.load_state_dict({name: held[name] for name in wanted}, strict=False)
    return network


def _plain(node: Node, path: str, layers: dict[str, IntegerLayer]) -> nn.Module:
    """The plain module of a packed node; adds its integer layers to ``layers``."""
    if node.entries > 1:
        raise Unsupported(f"{path} has ranges by sampler call, which a single graph cannot have")
    if isinstance(node, PackedLayer):
        layers[path] = node.integer_layer()
        return _layer(layers[path])
    if isinstance(node, GroupedLayer):
        node = node.split()
    if isinstance(node, SplitPackedLayer):
        parts = _children(node.parts, path, layers)
        sizes = [high - low for low, high in node.edges]
        return Parts(parts, sizes, _dim(node), node.order)
    if isinstance(node, MixedWidthLayer):
        return SideBySide(_children(node.parts, path, layers), node.back, _dim(node))
    raise Unsupported(f"{path} is packed as {node.form!r}, which has no plain layer")


def _children(parts: nn.ModuleList, path: str, layers: dict[str, IntegerLayer]) -> list[nn.Module]:
    return [_plain(node_of(p), f"{path}.parts.{i}", layers) for i, p in enumerate(parts)]


def _dim(node: Node) -> int:
    """The axis of the channels."""
    return -1 if len(node.weight_shape) == 2 else 1


def _layer(layer: IntegerLayer) -> nn.Module:
    """A plain layer of random weights: equal ones could be merged by a converter."""
    out, inputs, bias = layer.weight_codes.shape[0], layer.weight_codes.shape[1], layer.bias
    made: nn.Linear | nn.Conv2d
    if layer.kind == "linear":
        made = nn.Linear(inputs, out, bias=bias is not None)
    else:
        made = nn.Conv2d(
            inputs * layer.groups,
            out,
            tuple(layer.weight_codes.shape[2:]),  # type: ignore[arg-type]
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=bias is not None,
        )
    nn.init.normal_(made.weight)
    if bias is not None and made.bias is not None:
        made.bias.data.copy_(bias)
    return made
