"""Nested dicts, tuples and lists of tensors, as networks and their modules take and return them.

Their leaves are tensors and plain constants (None, bool, numbers, strings). The path of a leaf is
its keys and indices joined by dots, such as ``added_cond_kwargs.text_embeds``.
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
    """Replace every leaf of a tree by ``function(path, leaf)``."""
    if isinstance(tree, Mapping):
        return {key: map_leaves(function, value, _join(path, key)) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        items = [map_leaves(function, value, _join(path, i)) for i, value in enumerate(tree)]
        return tuple(items) if isinstance(tree, tuple) else items
    return function(path, tree)


def leaves(tree: Tree) -> dict[str, Any]:
    """All leaves by path."""
    by_path: dict[str, Any] = {}
    map_leaves(by_path.__setitem__, tree)
    return by_path


def to_json(tree: Tree) -> Any:
    """The structure of a tree in JSON types; tensors become the word ``tensor``."""
    if isinstance(tree, Mapping):
        return {"dict": {key: to_json(value) for key, value in tree.items()}}
    if isinstance(tree, tuple | list):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [to_json(value) for value in tree]}
    return "tensor" if isinstance(tree, Tensor) else {"value": tree}


def from_json(data: Any, tensors: Mapping[str, Tensor], path: str = "") -> Tree:
    """Rebuild a tree from the output of ``to_json``, with tensors by path.

    Raises:
        KeyError, ValueError: the data is no output of ``to_json``.
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
    """Apply ``change`` to every tensor in a value's tuples, lists and mappings, in order.

    Args:
        value: inputs or outputs of a module.
        change: function of a tensor.
        where: name of the module, for messages.

    Raises:
        Unsupported: the value holds an object that could contain tensors.
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
    all_tensors: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        all_tensors.append(tensor)
        return tensor

    map_tensors(value, note, where)
    return all_tensors


def same(one: Any, other: Any, where: str) -> bool:
    """Whether all tensors of two values are equal, bit for bit."""
    left, right = tensors(one, where), tensors(other, where)
    return len(left) == len(right) and all(map(torch.equal, left, right))


def prediction(output: Any, network: object) -> Any:
    """What a network predicts: its output, the first item of a tuple, or the item ``sample``.

    Raises:
        Unsupported: the output is something else.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and output:
        return output[0]
    found = output.get("sample") if isinstance(output, Mapping) else getattr(output, "sample", None)
    if isinstance(found, Tensor):
        return found
    raise Unsupported(
        f"{type(network).__name__} returns a {type(output).__name__} without a tensor `sample`: it "
        "must return its prediction, alone or as the first item of a tuple"
    )
