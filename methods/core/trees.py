"""Tensors inside the arguments and outputs of modules."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.conditions import map_leaves
from quantarena.methods.core.errors import Unsupported

_PLAIN = (type(None), int, float, complex, str, bytes, torch.dtype, torch.device)


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
