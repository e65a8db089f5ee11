"""One operation of a forward pass: its kind, operands and multiply-accumulates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor


class OpKind(StrEnum):
    """Kinds of operations, as far as the roles of layers depend on them."""

    SOURCE = "source"
    LAYER = "layer"
    ATTENTION = "attention"
    PRODUCT = "product"
    SOFTMAX = "softmax"
    ADD = "add"
    MUL = "mul"
    NONLINEAR = "nonlinear"
    NORM = "norm"
    CONCAT = "concat"
    RESIZE = "resize"
    OTHER = "other"


_NAMES: Mapping[OpKind, frozenset[str]] = {
    OpKind.PRODUCT: frozenset(
        {
            "bmm",
            "matmul",
            "__matmul__",
            "__rmatmul__",
            "baddbmm",
            "einsum",
            "mm",
        }
    ),
    OpKind.SOFTMAX: frozenset({"softmax", "special_softmax"}),
    OpKind.ADD: frozenset({"add", "__add__", "__radd__", "__iadd__", "sub", "__sub__", "__rsub__"}),
    OpKind.MUL: frozenset({"mul", "__mul__", "__rmul__", "__imul__", "addcmul"}),
    OpKind.NONLINEAR: frozenset(
        {
            "gelu",
            "silu",
            "relu",
            "relu6",
            "sigmoid",
            "tanh",
            "mish",
            "softplus",
            "leaky_relu",
            "elu",
            "hardswish",
        }
    ),
    OpKind.NORM: frozenset(
        {
            "layer_norm",
            "group_norm",
            "batch_norm",
            "rms_norm",
            "instance_norm",
            "rsqrt",
        }
    ),
    OpKind.CONCAT: frozenset({"cat", "concat", "concatenate"}),
    OpKind.RESIZE: frozenset({"interpolate", "pixel_shuffle", "upsample"}),
}
KINDS = {name: kind for kind, names in _NAMES.items() for name in names}
_SAME_VALUES = frozenset({"contiguous", "to", "float", "clone", "dropout", "type_as", "detach"})


@dataclass(slots=True)
class Op:
    """One operation.

    Attributes:
        kind: kind of the operation.
        inputs: indices of the operations that made its tensor arguments, in the arguments' order;
            tensors from outside, such as parameters, are left out.
        shape: shape of the (first) result; of a layer, that of its input.
        call: index of the module call in which it ran, or of the layer's own call; -1 for none.
        name: name of the function, or the module path of a layer.
        macs: multiply-accumulates of a product, or of both products of a fused attention.
        parts: channel widths of the concatenated tensors.
        axis: axis of a concatenation, not negative.
    """

    kind: OpKind
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    call: int = -1
    name: str = ""
    macs: int = 0
    parts: tuple[int, ...] = ()
    axis: int = 0


@dataclass(slots=True)
class AttentionCall:
    """One ``softmax(q k) v``.

    Attributes:
        query, key, value: operations that made the operands; None for a tensor from outside.
        call: index of the module call in which it ran.
        macs: multiply-accumulates of ``q k`` and of ``softmax v``, for all images of the batch.
        scores: shape of the softmax, (..., query tokens, key tokens).
        fused: whether it is one call of ``scaled_dot_product_attention`` and not separate products.
    """

    query: int | None
    key: int | None
    value: int | None
    call: int
    macs: tuple[int, int]
    scores: tuple[int, ...]
    fused: bool


def attention_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a ``scaled_dot_product_attention`` call, by name."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def product_operands(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The two factors of a matrix product, left factor first."""
    values = [*args, *kwargs.values()]
    if name == "einsum":
        values = [v for v in values if not isinstance(v, str)]
        if len(values) == 1 and isinstance(values[0], tuple | list):
            values = list(values[0])
    tensors = [v for v in values if isinstance(v, Tensor)]
    if name == "__rmatmul__":
        return tensors[1::-1]
    return tensors[1:3] if name == "baddbmm" else tensors[:2]


def function_name(func: Callable[..., Any]) -> str:
    """Name of a torch function: ``add`` for ``torch.add``, ``Tensor.add`` and ``Tensor.add_``."""
    name: str = getattr(func, "__name__", "")
    return name if name.startswith("__") else name.rstrip("_")


def product_macs(name: str, args: tuple[Any, ...], factors: list[Tensor], result: Tensor) -> int:
    """Multiply-accumulates of a matrix product, for all images of the batch."""
    if name == "einsum" and isinstance(args[0], str):
        return result.numel() * _summed(args[0].replace(" ", ""), factors[0])
    return result.numel() * factors[0].shape[-1]


def _summed(equation: str, factor: Tensor) -> int:
    """Number of products that an einsum sums up for each of its results."""
    terms, _, result = equation.partition("->")
    if "->" not in equation:
        result = "".join(letter for letter in terms if terms.count(letter) == 1)
    first = terms.split(",")[0]
    size = 1
    for place, letter in enumerate(first):
        if letter not in result and letter != ".":
            size *= factor.shape[place - len(first) if "." in first[:place] else place]
    return size


def same_values(ops: list[Op], index: int) -> int:
    """Index of the operation whose values this one holds, behind operations that only copy."""
    while ops[index].name in _SAME_VALUES and ops[index].inputs:
        index = ops[index].inputs[0]
    return index
