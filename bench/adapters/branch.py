"""A low-rank branch beside a packed layer of any form: how it is put there and taken off again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantarena.methods.core.packed.nodes.node import Node
from quantarena.methods.core.packed.nodes.patches import PatchLayer
from quantarena.methods.core.packed.nodes.wrappers import (
    Conv1dLayer,
    LowRankLayer,
    PointwiseLayer,
)
from quantarena.methods.core.quantizers.layer_geometry import LayerGeometry, as_image_weight

Factors = tuple[Tensor, Tensor]
"""``down``, (r, K, ...), and ``up``, (O, r): the branch adds ``up @ (down x)``."""


def geometry_of(node: Node) -> LayerGeometry:
    """How the layer that a packed node stands for moves over its input.

    The node says it itself, or the first leaf in it does.
    """
    spatial = len(node.weight_shape) - 2
    if spatial < 1:
        return LayerGeometry()
    for part in node.modules():
        if isinstance(part, PatchLayer):
            found = part.window
            return LayerGeometry(spatial, found.stride, found.padding, found.dilation)
        if isinstance(part, PointwiseLayer):
            return LayerGeometry(spatial, part.stride, (0, 0), (1, 1))
        said = getattr(part, "metadata", {})
        if "stride" in said:
            stride, padding, dilation = (
                tuple(int(v) for v in said[name])[-spatial:]
                for name in ("stride", "padding", "dilation")
            )
            return LayerGeometry(spatial, stride, padding, dilation, int(said["groups"]))
    raise ValueError(f"a {type(node).__name__} does not say how it moves over its input")


def with_branch(node: Node, factors: Sequence[Factors]) -> Node:
    """A packed layer with branches in floating point beside it, which share one native call.

    Args:
        node: the layer; it becomes a part of the result, and is not changed.
        factors: the branches.

    Raises:
        ValueError: a convolution in groups, or factors that do not fit the layer.
    """
    geometry = geometry_of(node)
    if geometry.groups > 1:
        raise ValueError("a convolution in groups cannot hold a branch")
    down = torch.cat([down.detach().float() for down, _ in factors])
    up = torch.cat([up.detach().float() for _, up in factors], 1)
    if isinstance(node, Conv1dLayer):
        image = LowRankLayer(node.inner, as_image_weight(down), up, geometry.as_image())
        return _like(node, Conv1dLayer(_like(node.inner, image)))
    inner: Node = node
    if isinstance(node, LowRankLayer):  # the kernels compute one branch in their call
        inner, down = node.inner, torch.cat([node.down, down])
        up = torch.cat([node.up, up], 1)
    return _like(node, LowRankLayer(inner, down, up, geometry.as_image()))


def without_branch(node: Node, rank: int) -> Node:
    """The layer that ``with_branch`` was given; it computes the same bits.

    Args:
        node: what ``with_branch`` returned, wherever it has been moved since.
        rank: rows of all factors together.
    """
    if isinstance(node, Conv1dLayer):
        assert isinstance(node.inner, LowRankLayer)
        return _like(node, Conv1dLayer(node.inner.inner))
    assert isinstance(node, LowRankLayer)
    left = len(node.down) - rank
    if not left:
        return _like(node, node.inner)
    kept = LowRankLayer(node.inner, node.down[:left], node.up[:, :left], node.geometry)
    return _like(node, kept)


def _like(node: Node, made: Node) -> Node:
    """The new node where the old one was: on its clock, followed by the same functions."""
    made.set_clock(node.clock)
    made.follower, made.around, made._step = node.follower, node.around, node._step
    made.train(node.training)
    return made
