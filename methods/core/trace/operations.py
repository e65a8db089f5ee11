"""The operations of one forward pass, as a graph: what made each tensor, and from which ones.

Tensors are followed by identity through every torch function; convolutions and linears become one
operation each. Nothing is kept alive, so a trace needs no more memory than a plain forward pass.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

QuantizableModule = nn.Conv1d | nn.Conv2d | nn.Linear
"""Layers that can be quantized."""


class OpKind(StrEnum):
    """What an operation does, as far as roles depend on it."""

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
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names}
_SAME_VALUES = frozenset({"contiguous", "to", "float", "clone", "dropout", "type_as", "detach"})


@dataclass(slots=True)
class Op:
    """One operation.

    Attributes:
        kind: what it does.
        inputs: operations that made its tensor arguments, in the arguments' order; tensors from
            outside, such as parameters, are left out.
        shape: of its (first) result.
        call: the call of a module that it happened in, or the layer's own call.
        name: function name; of a layer its module path.
        macs: of a product, both of a fused attention together.
        parts: channel widths of a concatenation's tensors along its axis.
        axis: of a concatenation, not negative.
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
    """One ``softmax(q k) v``: the operations that made its operands and hold its products.

    Attributes:
        query, key, value: operations that made the operands; None for a tensor from outside.
        call: the module call that it happened in.
        macs: of ``q k`` and of ``softmax v``, all images of the batch.
        scores: shape of the softmax, (..., query tokens, key tokens).
        fused: one call of ``scaled_dot_product_attention``, not products and a softmax.
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
    """The two factors of a matrix product in the order in which they are written."""
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
    """``add`` for ``torch.add``, ``Tensor.add`` and ``Tensor.add_``."""
    name: str = getattr(func, "__name__", "")
    return name if name.startswith("__") else name.rstrip("_")


class Recorder(TorchFunctionMode):
    """Writes down every operation while it is entered.

    Attributes:
        ops: in execution order; an operation's inputs come before it.
        attention: attention products in execution order.
        calls: module paths of the module calls, by number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.attention: list[AttentionCall] = []
        self.calls: list[str] = []
        self._made: Any = WeakTensorKeyDictionary()  # tensor -> its operation
        self._stack: list[int] = []
        self._factors: dict[int, tuple[int | None, ...]] = {}  # of a product: what made them
        self._scores: dict[int, int] = {}  # operation -> the product whose softmax it holds

    def made(self, tensor: Tensor) -> int | None:
        """The operation that made ``tensor``."""
        found: int | None = self._made.get(tensor)
        return found

    def source(self, tensor: Tensor) -> None:
        """Register an input of the network."""
        self._add(Op(OpKind.SOURCE, (), tuple(tensor.shape)), [tensor])

    def enter(self, path: str) -> None:
        """A module's forward begins."""
        self._stack.append(len(self.calls))
        self.calls.append(path)

    def leave(self) -> None:
        """The forward of the module that was entered last ends."""
        self._stack.pop()

    def layer(self, path: str, x: Tensor, output: Tensor) -> None:
        """A convolution or linear ran."""
        made = self.made(x)
        inputs = () if made is None else (made,)
        self._add(Op(OpKind.LAYER, inputs, tuple(x.shape), self._call, path), [output])

    @property
    def _call(self) -> int:
        return self._stack[-1] if self._stack else -1

    def _add(self, op: Op, results: Iterable[Tensor]) -> int:
        self.ops.append(op)
        for tensor in results:
            self._made[tensor] = len(self.ops) - 1
        return len(self.ops) - 1

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        results = list(_tensors(result))
        name = function_name(func)
        if name == "__setitem__":
            results = [args[0]]
        if results:
            self._note(name, args, kwargs, results)
        return result

    def _note(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], results: list[Tensor]
    ) -> None:
        arguments = list(_tensors((args, kwargs)))
        inputs = tuple(made for t in arguments if (made := self.made(t)) is not None)
        op = Op(OpKind.OTHER, inputs, tuple(results[0].shape), self._call, name)
        if name == "scaled_dot_product_attention":
            self._fused(op, attention_arguments(args, kwargs), results)
            return
        op.kind = _KINDS.get(name, OpKind.OTHER)
        if op.kind is OpKind.CONCAT:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            op.axis = dim % results[0].dim()
            op.parts = tuple(t.shape[op.axis] for t in arguments)
        factors = product_operands(name, args, kwargs) if op.kind is OpKind.PRODUCT else []
        if len(factors) == 2:
            op.macs = _product_macs(name, args, factors, results[0])
        elif op.kind is OpKind.PRODUCT:
            op.kind = OpKind.OTHER  # an einsum of one tensor only moves values
        index = self._add(op, results)
        if op.kind is OpKind.PRODUCT:
            self._product(index, op, factors)
        else:
            self._follow_scores(index, op)

    def _fused(self, op: Op, given: Mapping[str, Any], results: list[Tensor]) -> None:
        query, key, value = given["query"], given["key"], given["value"]
        op.kind = OpKind.ATTENTION
        rows = query.numel() // query.shape[-1] * key.shape[-2]
        macs = (rows * query.shape[-1], rows * value.shape[-1])
        op.macs = sum(macs)
        made = (self.made(query), self.made(key), self.made(value))
        scores = (*query.shape[:-1], key.shape[-2])
        self._add(op, results)
        self.attention.append(AttentionCall(*made, op.call, macs, scores, fused=True))

    def _product(self, index: int, op: Op, factors: list[Tensor]) -> None:
        """A written-out product: the first or the second one of an attention, or another."""
        made = tuple(self.made(t) for t in factors)
        first = next((self._scores[m] for m in made if m is not None and m in self._scores), None)
        if first is None:
            self._factors[index] = made
            return
        op.kind = OpKind.ATTENTION
        query, key = self._factors[first]
        value = next((m for m in made if m is None or m not in self._scores), None)
        product = self.ops[first]
        self.attention.append(
            AttentionCall(
                query, key, value, op.call, (product.macs, op.macs), product.shape, fused=False
            )
        )

    def _follow_scores(self, index: int, op: Op) -> None:
        """Remember which tensors are a product on its way to its softmax, and from there."""
        if op.kind is OpKind.SOFTMAX:
            first = self._nearest_product(index)
            if first is not None:
                self._scores[index] = first
        elif op.kind is OpKind.OTHER:
            found = next((self._scores[i] for i in op.inputs if i in self._scores), None)
            if found is not None:
                self._scores[index] = found

    def _nearest_product(self, index: int) -> int | None:
        """The product that a softmax is of: through scaling, masks and changes of shape."""
        passes = {OpKind.OTHER, OpKind.ADD, OpKind.MUL, OpKind.SOFTMAX}
        while self.ops[index].kind in passes and self.ops[index].inputs:
            index = self.ops[index].inputs[0]
        return index if index in self._factors else None


def _product_macs(name: str, args: tuple[Any, ...], factors: list[Tensor], result: Tensor) -> int:
    if name == "einsum" and isinstance(args[0], str):
        return result.numel() * _summed(args[0].replace(" ", ""), factors[0])
    return result.numel() * factors[0].shape[-1]


def _summed(equation: str, factor: Tensor) -> int:
    """How many products an einsum sums up for each of its results."""
    terms, _, result = equation.partition("->")
    if "->" not in equation:
        result = "".join(letter for letter in terms if terms.count(letter) == 1)
    first = terms.split(",")[0]
    size = 1
    for place, letter in enumerate(first):
        if letter not in result and letter != ".":
            size *= factor.shape[place - len(first) if "." in first[:place] else place]
    return size


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def same_values(ops: list[Op], index: int) -> int:
    """Walk back from an operation over those that only copy."""
    while ops[index].name in _SAME_VALUES and ops[index].inputs:
        index = ops[index].inputs[0]
    return index


@contextmanager
def recording(
    model: nn.Module, note: Callable[[str, QuantizableModule, Tensor, Tensor], None]
) -> Iterator[Recorder]:
    """Record every forward pass inside the block.

    Args:
        model: the network.
        note: called with (path, layer, input, output) after every layer's call.
    """
    recorder = Recorder()

    def enter(path: str) -> Any:
        return lambda module, args: recorder.enter(path)

    def leave(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, QuantizableModule):
                recorder.layer(path, args[0], output)
                note(path, module, args[0], output)
            recorder.leave()

        return hook

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path)))
        handles.append(module.register_forward_hook(leave(path)))
    try:
        with torch.no_grad(), recorder:
            yield recorder
    finally:
        for handle in handles:
            handle.remove()
