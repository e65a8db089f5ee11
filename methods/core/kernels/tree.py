"""Packed modules from their descriptions."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from quantarena.methods.core.kernels.compose import (
    Conv1dLayer,
    FloatTokensLayer,
    LowRankLayer,
    MixedWidthLayer,
    PointwiseLayer,
)
from quantarena.methods.core.kernels.expert import ExpertLayer
from quantarena.methods.core.kernels.node import Node, Tensors
from quantarena.methods.core.kernels.packed import PackedLayer
from quantarena.methods.core.kernels.patches import PatchLayer
from quantarena.methods.core.kernels.runtime import RowScaledLayer, SampleScaledLayer
from quantarena.methods.core.kernels.split import SplitPackedLayer
from quantarena.methods.core.kernels.weight_only import WeightOnlyLayer

Leaf = PackedLayer | WeightOnlyLayer
"""What holds codes."""

_FORMS: dict[str, type[Node]] = {
    cls.form: cls
    for cls in (
        PackedLayer,
        WeightOnlyLayer,
        SplitPackedLayer,
        MixedWidthLayer,
        RowScaledLayer,
        SampleScaledLayer,
        LowRankLayer,
        FloatTokensLayer,
        ExpertLayer,
        Conv1dLayer,
        PointwiseLayer,
        PatchLayer,
    )
}


def leaves(node: nn.Module) -> list[Leaf]:
    """The leaves of a tree, in order."""
    return [m for m in node.modules() if isinstance(m, PackedLayer | WeightOnlyLayer)]


def build(document: Mapping[str, Any], tensors: Tensors) -> Node:
    """A node from its description and its tensors, of which it takes out what it uses.

    Raises:
        KeyError: something is missing.
        TypeError: the description has other types.
        ValueError: something does not fit, an unknown form, or tensors that nobody asked for.
    """
    form = document["form"]
    if form not in _FORMS:
        raise ValueError(f"has the form {form!r}, known are {', '.join(sorted(_FORMS))}")
    node = _FORMS[form].rebuild(document, tensors, build)
    if tensors:
        raise ValueError(f"has a tensor {min(tensors)} that its description does not name")
    return node
