"""What each operation of torch means for channels that are rescaled.

A *move* keeps values and changes their places: it is run on the labels themselves. Any operation
without a rule fixes the channels that it reads, so an unknown network has fewer free channels and
never wrong ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from quantarena.bench.workloads.outliers.labels import constant_along, pairs, unique
from quantarena.bench.workloads.outliers.ties import Ties
from quantarena.methods.core.trace.operation import attention_arguments

_MOVES = frozenset(
    {
        "view",
        "reshape",
        "transpose",
        "permute",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "movedim",
        "swapaxes",
        "chunk",
        "split",
        "unbind",
        "narrow",
        "select",
        "__getitem__",
        "expand",
        "expand_as",
        "repeat",
        "repeat_interleave",
        "flip",
        "cat",
        "concat",
        "stack",
        "pixel_shuffle",
        "pixel_unshuffle",
        "__get__",
    }
)
"""``__get__`` is a property such as ``mT``."""
_COPIES = frozenset({"contiguous", "to", "float", "clone", "detach", "dropout", "type_as"})
_SCALED = frozenset({"neg", "__neg__", "relu", "leaky_relu"})
"""Functions f of one value with ``f(c x) = c f(x)`` for all positive c."""
_SPATIAL = frozenset({"interpolate", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d"})
"""Operations on the positions of an image, alike for all channels."""
_SUMS = frozenset({"add", "__add__", "__radd__", "__iadd__", "sub", "__sub__", "__rsub__"})
_ONE_PLUS = frozenset({"add", "__add__", "__radd__"})
_TIMES = frozenset({"mul", "__mul__", "__rmul__", "__imul__"})
_OVER = frozenset({"div", "__truediv__", "__itruediv__", "true_divide"})
_PRODUCTS = frozenset({"matmul", "__matmul__", "bmm"})

Labelled = Callable[[Tensor], Tensor]
"""Labels of any tensor; of one from outside they are all fixed."""


class Rules:
    """The rules, with what they found.

    Args:
        ties: classes of channels, which the rules change.
        labels_of: labels of a tensor.
        biased: numbers of the channels made by layers with a bias.

    Attributes:
        used: channels that an operation reads which is no move and not ``1 + gain``.
        gains: of a channel g of which the network takes ``1 + g``, the channel of the sum.
        scores: pairs of channels that are multiplied with each other in attention.
        joined: the channels of each part of every concatenation.
    """

    def __init__(self, ties: Ties, labels_of: Labelled, biased: set[int]) -> None:
        self.ties, self.labels_of, self.biased = ties, labels_of, biased
        self.used: set[int] = set()
        self.gains: dict[int, int] = {}
        self.scores: set[tuple[int, int]] = set()
        self.joined: list[tuple[frozenset[int], ...]] = []

    def __call__(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> Any:
        """Labels of an operation's result; None where the operation fixes what it reads."""
        if name in _MOVES:
            return self._move(func, name, args, kwargs)
        if name in _COPIES:
            return self.labels_of(args[0])
        if name in _SCALED or (name in _TIMES | _OVER and _one_tensor(args)):
            first = args[0] if name not in _TIMES or isinstance(args[0], Tensor) else args[1]
            return self._scaled(first)
        if name in _SPATIAL or (name == "pad" and _pads_positions(args, kwargs)):
            return self._spatial(args[0], result)
        if name in _SUMS:
            return self._sum(name, args, kwargs, result)
        if name in _TIMES and len(args) == 2:
            return self._times(args[0], args[1], result)
        if name in _OVER and not self._any_free(args[1]):
            return self.labels_of(args[0]).expand(result.shape)
        if name == "scaled_dot_product_attention":
            return self._attention(attention_arguments(args, kwargs), result)
        if name in _PRODUCTS and len(args) == 2:
            return self._product(args[0], args[1], result)
        if name == "baddbmm" and len(args) >= 3:  # its first argument is fixed, as is its result
            return self._scores(self.labels_of(args[1]), self.labels_of(args[2]))
        return None

    def use(self, labels: Tensor) -> None:
        """Note that an operation reads these channels."""
        self.used |= set(unique(labels))

    def fix(self, labels: Tensor) -> None:
        """Fix channels that are read in a way that cannot undo a factor."""
        self.use(labels)
        for channel in unique(labels):
            self.ties.fix(channel)

    def tie(self, one: Tensor, other: Tensor, sign: int = 1) -> None:
        """Tie channels place by place."""
        self.use(one)
        self.use(other)
        for a, b in pairs(one, other):
            self.ties.tie(a, b, sign)

    def _any_free(self, tensor: Tensor) -> bool:
        return any(self.ties.free(channel) for channel in unique(self.labels_of(tensor)))

    def _move(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        first = args[0]
        if isinstance(first, Tensor):
            labels = self.labels_of(first)
            if name == "view":  # repeated labels may have no view of this shape
                return labels.reshape(*args[1:])
            return func(labels, *args[1:], **kwargs)
        parts = [self.labels_of(part) for part in first]
        self.joined.append(tuple(frozenset(unique(part)) for part in parts))
        return func(parts, *args[1:], **kwargs)

    def _scaled(self, x: Any) -> Tensor | None:
        if not isinstance(x, Tensor):
            return None  # a number over a tensor
        self.use(self.labels_of(x))
        return self.labels_of(x)

    def _spatial(self, x: Tensor, result: Tensor) -> Tensor | None:
        labels = self.labels_of(x)
        if x.dim() != 4 or not all(constant_along(labels, axis) for axis in (2, 3)):
            return None
        self.use(labels)
        return labels[:, :, :1, :1].expand(result.shape)

    def _sum(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor
    ) -> Tensor | None:
        if len(args) != 2:
            return None
        if _one_tensor(args):
            x, number = args if isinstance(args[0], Tensor) else args[::-1]
            return self._one_plus(x) if number == 1 and name in _ONE_PLUS and not kwargs else None
        one, other = (self.labels_of(x).expand(result.shape) for x in args)
        self.tie(one, other)
        return one

    def _one_plus(self, x: Tensor) -> Tensor | None:
        """Labels of ``1 + x`` where x is made by a layer with a bias: the layer can scale the sum.

        ``f (1 + w y + b) = 1 + (f w) y + (f (1 + b) - 1)``.
        """
        labels = self.labels_of(x)
        gains = unique(labels)
        if not set(gains) <= self.biased:
            return None
        for gain in gains:
            if gain not in self.gains:
                self.gains[gain] = int(self.ties.fresh(1))
        table = torch.zeros(gains[-1] + 1, dtype=labels.dtype)
        table[gains] = torch.tensor([self.gains[gain] for gain in gains], dtype=labels.dtype)
        return table[labels.long()]

    def _times(self, one: Tensor, other: Tensor, result: Tensor) -> Tensor:
        """Labels of a product of two tensors: those of one factor, the other factor is fixed."""
        if self._any_free(one) and (not self._any_free(other) or one.numel() >= other.numel()):
            one, other = other, one
        self.fix(self.labels_of(one))
        return self.labels_of(other).expand(result.shape)

    def _attention(self, given: Mapping[str, Any], result: Tensor) -> Tensor | None:
        query, key, value = (self.labels_of(given[n]) for n in ("query", "key", "value"))
        if self._scores(query, key.transpose(-1, -2)) is None:
            self.fix(query)
            self.fix(key)
        if not constant_along(value, -2) or value.shape[:-2] != result.shape[:-2]:
            return None
        return value.narrow(-2, 0, 1).expand(result.shape)

    def _product(self, one: Tensor, other: Tensor, result: Tensor) -> Tensor | None:
        left, right = self.labels_of(one), self.labels_of(other)
        if left.dim() < 2 or left.dim() != right.dim():
            return None
        if not self._any_free(one) and constant_along(right, -2):
            self.fix(left)
            return right.narrow(-2, 0, 1).expand(result.shape)
        return self._scores(left, right)

    def _scores(self, left: Tensor, right: Tensor) -> Tensor | None:
        """Labels of ``left @ right`` whose summed channels get factors that cancel: fixed ones."""
        if not constant_along(left, -2) or not constant_along(right, -1):
            return None
        query, key = left.select(-2, 0), right.select(-1, 0)
        if query.shape != key.shape:
            return None
        self.tie(query, key, -1)
        self.scores |= set(pairs(query, key))
        return left.new_zeros(()).expand(*left.shape[:-1], right.shape[-1])


def _one_tensor(args: tuple[Any, ...]) -> bool:
    """Whether one of two arguments is a tensor and the other one a number."""
    numbers = sum(isinstance(value, int | float) for value in args)
    return len(args) == 2 and numbers == 1 and any(isinstance(v, Tensor) for v in args)


def _pads_positions(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether padding adds zeros, or repeats values, beside the positions of an image only."""
    amounts = kwargs.get("pad", args[1] if len(args) > 1 else ())
    value = kwargs.get("value", args[3] if len(args) > 3 else None)
    return len(amounts) <= 4 and not value
