"""Packed modules from their descriptions."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.dense import DenseLayer
from quantarena.methods.core.packed.nodes.gains import CallAffineLayer, GainsLayer
from quantarena.methods.core.packed.nodes.k_groups import GroupedLayer, one_call
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.node import Node, Tensors
from quantarena.methods.core.packed.nodes.patches import PatchLayer
from quantarena.methods.core.packed.nodes.rotation import RotationLayer
from quantarena.methods.core.packed.nodes.row_ranges import RowScaledLayer, SampleScaledLayer
from quantarena.methods.core.packed.nodes.weight_only import WeightOnlyLayer
from quantarena.methods.core.packed.nodes.wrappers import (
    Conv1dLayer,
    LowRankLayer,
    MixedWidthLayer,
    OffsetLayer,
    PointwiseLayer,
)

Leaf = PackedLayer | GroupedLayer | WeightOnlyLayer
"""The nodes that hold codes."""

_FORMS: dict[str, type[Node]] = {
    cls.form: cls
    for cls in (
        PackedLayer,
        DenseLayer,
        WeightOnlyLayer,
        SplitPackedLayer,
        MixedWidthLayer,
        RowScaledLayer,
        SampleScaledLayer,
        LowRankLayer,
        OffsetLayer,
        RotationLayer,
        GainsLayer,
        CallAffineLayer,
        Conv1dLayer,
        PointwiseLayer,
        PatchLayer,
    )
}

_DROPPED = {"float_tokens": "tokens in floating point (float_tokens)"}
"""Forms that earlier versions wrote and this one cannot read."""


def leaf_nodes(node: nn.Module) -> list[Leaf]:
    """The leaves of a tree, in order."""
    return [m for m in node.modules() if isinstance(m, Leaf)]


def build(document: Mapping[str, Any], tensors: Tensors) -> Node:
    """A node from its description and its tensors, of which it takes out what it uses.

    Raises:
        KeyError: something is missing.
        TypeError: the description has other types.
        ValueError: something does not fit, an unknown form, or tensors that nobody asked for.
    """
    form = document["form"]
    if form in _DROPPED:
        raise ValueError(f"has {_DROPPED[form]}, which is no longer supported: quantize again")
    if form not in _FORMS:
        raise ValueError(f"has the form {form!r}, known are {', '.join(sorted(_FORMS))}")
    node = _FORMS[form].rebuild(document, tensors, build)
    if tensors:
        raise ValueError(f"has a tensor {min(tensors)} that its description does not name")
    return one_call(node) if isinstance(node, SplitPackedLayer) else node


def wrapped(
    inner: Node, form: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Node:
    """A node of the named form around another one.

    Args:
        inner: the node to go around.
        form: as in descriptions.
        fields: the description's other entries.
        tensors: the node's own, without those of ``inner``.
    """
    return _FORMS[form].rebuild({**fields, "inner": {}}, dict(tensors), lambda *_: inner)
