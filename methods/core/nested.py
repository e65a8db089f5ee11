"""Nested dicts, tuples and lists of tensors: what networks and their modules take and give.

Their leaves are tensors and plain constants (None, bool, numbers, strings). A leaf's path is its
keys and places joined by dots, such as ``added_cond_kwargs.text_embeds``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported

_PLAIN = (type(None), int, float, complex, str, bytes, torch.dtype, torch.device)

Tree = Any
"""A leaf, or a mapping, tuple or list of trees."""


def map_leaves(function: Callable[[str, Any], Any], tree: Tree, path: str = "") -> Tree:
    """The same tree with ``function(path, leaf)`` in place of every leaf."""
    if isinstance(tree, Mapping):
        return {key: map_leaves(function, value, _join(path, key)) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        items = [map_leaves(function, value, _join(path, i)) for i, value in enumerate(tree)]
        return tuple(items) if isinstance(tree, tuple) else items
    return function(path, tree)


def leaves(tree: Tree) -> dict[str, Any]:
    """All leaves by path."""
    found: dict[str, Any] = {}
    map_leaves(found.__setitem__, tree)
    return found


def to_json(tree: Tree) -> Any:
    """The tree in JSON types, with the path of each tensor in its place."""
    if isinstance(tree, Mapping):
        return {"dict": {key: to_json(value) for key, value in tree.items()}}
    if isinstance(tree, tuple | list):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [to_json(value) for value in tree]}
    return "tensor" if isinstance(tree, Tensor) else {"value": tree}


def from_json(data: Any, tensors: Mapping[str, Tensor], path: str = "") -> Tree:
    """The tree that ``to_json`` wrote.

    Raises:
        KeyError, ValueError: it did not write this.
    """
    if data == "tensor":
        return tensors[path]
    ((kind, value),) = data.items()
    if kind == "value":
        return value
    if kind == "dict":
        return {key: from_json(item, tensors, _join(path, key)) for key, item in value.items()}
    items = [from_json(item, tensors, _join(path, i)) for i, item in enumerate(value)]
    return tuple(items) if kind == "tuple" else items


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor], where: str) -> Any:
    """``value`` with every tensor in its tuples, lists and mappings changed, in order.

    Args:
        value: what a module takes or gives.
        change: applied to each tensor.
        where: the module, for messages.

    Raises:
        Unsupported: an object that could hide a tensor.
    """

    def visit(path: str, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if isinstance(leaf, _PLAIN):
            return leaf
        raise Unsupported(
            f"{where}: cannot look for tensors in a {type(leaf).__name__}; blocks take and give "
            "tensors, plain values, and tuples, lists or mappings of them"
        )

    return map_leaves(visit, value)


def tensors(value: Any, where: str) -> list[Tensor]:
    """All tensors in ``value``, in the order of ``map_tensors``."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, note, where)
    return found


def cloned(value: Any, where: str) -> Any:
    """A copy that changes in place do not reach."""
    return map_tensors(value, lambda tensor: tensor.detach().clone(), where)


def same(one: Any, other: Any, where: str) -> bool:
    """Whether the tensors of both are equal, bit for bit."""
    left, right = tensors(one, where), tensors(other, where)
    return len(left) == len(right) and all(map(torch.equal, left, right))
