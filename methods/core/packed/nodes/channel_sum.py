"""A layer as the sum of packed parts over ranges of its input channels."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.node import (
    Build,
    Document,
    Node,
    Tensors,
    like_input,
    node_of,
    take,
)

_SHARED = ("kind", "stride", "padding", "dilation", "groups")


class SplitPackedLayer(Node):
    """Sum of packed layers over consecutive ranges of input channels.

    Each part has its own weight and activation quantizers, as the inputs of a U-Net's skip
    concatenation need, or groups of channels with their own ranges. Parts read their channels in
    place and add to one output.

    Attributes:
        order: (K,) int32, channel of the input that each channel of the parts is; None where
            parts are ranges of the input as it comes.
    """

    form: ClassVar[str] = "split"
    order: Tensor | None

    def __init__(
        self,
        parts: Sequence[IntegerLayer | Node],
        library: native.Library | None = None,
        *,
        order: Tensor | None = None,
    ) -> None:
        """Packs the parts.

        Args:
            parts: layers in the order of their channels; they agree in all but their input
                channels and quantizers, and only the first may have a bias.
            library: kernels to run on; by default those of this process.
            order: see the attribute.

        Raises:
            ValueError: no parts, or parts that do not agree.
        """
        nodes = tuple(p if isinstance(p, Node) else PackedLayer(p, library) for p in parts)
        if not nodes:
            raise ValueError("a split layer needs at least one part")
        super().__init__(nodes)
        _check(nodes)
        self._sizes = [node.weight_shape[1] for node in nodes]
        self._dim = -1 if len(nodes[0].weight_shape) == 2 else 1
        self.parts = nn.ModuleList(nodes)
        self.register_buffer("order", None if order is None else order.to(torch.int32))

    def run(self, x: Tensor, step: int) -> Tensor:
        """Sum of the parts' outputs; see ``Node.forward``."""
        if x.shape[self._dim] != sum(self._sizes):
            raise ValueError(f"input {tuple(x.shape)} does not have {sum(self._sizes)} channels")
        if self.order is not None:
            x = like_input(x.index_select(self._dim, self.order), x)
        first, *rest = zip(self.parts, torch.split(x, self._sizes, self._dim), strict=True)
        y = self.below(node_of(first[0]), first[1], step)
        direct = node_of(first[0]).in_place
        for part, piece in rest:
            node = node_of(part)
            if direct and node.in_place:
                node.add_to(y, piece, step if node.entries else 0)
            else:
                y = y + self.below(node, piece, step)
        return like_input(y, x)  # a slice of an image has no format that a part could follow

    @property
    def edges(self) -> list[tuple[int, int]]:
        """First and one-past-last input channel of each part."""
        return list(pairwise(accumulate(self._sizes, initial=0)))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight: the parts' side by side."""
        out, _, *places = node_of(self.parts[0]).weight_shape
        return (out, sum(self._sizes), *places)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def describe(self) -> Document:
        """See ``Node``."""
        parts = [node_of(part).describe() for part in self.parts]
        return {"form": self.form, "ordered": self.order is not None, "parts": parts}

    @classmethod
    def rebuild(
        cls, document: Mapping[str, Any], tensors: Tensors, build: Build
    ) -> "SplitPackedLayer":
        """See ``Node``."""
        order = tensors.pop("order") if document["ordered"] else None
        parts = [
            build(part, take(tensors, f"parts.{i}.")) for i, part in enumerate(document["parts"])
        ]
        node = cls(parts, order=order)
        if order is not None:
            check_permutation(order, node.weight_shape[1])
        return node


def check_permutation(order: Tensor, size: int) -> None:
    """Refuses what is no order of ``size`` channels.

    Raises:
        ValueError: it is none.
    """
    if not torch.equal(order.long().sort().values, torch.arange(size)):
        raise ValueError(f"an order of {len(order)} channels does not hold all {size} once")


def _check(nodes: Sequence[Node]) -> None:
    """Parts agree in all but their inputs.

    Raises:
        ValueError: they do not.
    """
    traits: dict[str, list[Any]] = {
        "out_features": [node.weight_shape[0] for node in nodes],
        "kernel_size": [node.weight_shape[2:] for node in nodes],
    }
    leaves = [node for node in nodes if isinstance(node, PackedLayer)]
    for name in _SHARED:
        traits[name] = [leaf.metadata[name] for leaf in leaves]
    for name, values in traits.items():
        if any(value != values[0] for value in values):
            raise ValueError(f"parts of a split layer differ in {name}: {values}")
    late = [leaf for leaf in leaves if leaf.bias is not None and leaf is not nodes[0]]
    if late or any(leaf.metadata["groups"] != 1 for leaf in leaves):
        raise ValueError("a split layer has no groups, and its bias belongs to the first part")
