"""The operations of one forward pass, as a graph: what made each tensor, and from which ones.

Tensors are followed by identity through every torch function; convolutions and linears become one
operation each. The recording keeps no tensor alive, so a trace needs no more memory than a plain
forward pass. (torch.fx cannot trace the control flow of diffusers' networks.)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.trace.operation import (
    KINDS,
    AttentionCall,
    Op,
    OpKind,
    attention_arguments,
    function_name,
    product_macs,
    product_operands,
)
from quantarena.methods.core.visits import on_host

QuantizableModule = nn.Conv1d | nn.Conv2d | nn.Linear
"""Layers that can be quantized."""


class OperationRecorder(TorchFunctionMode):
    """Records every operation while it is active as a context.

    Attributes:
        ops: operations in execution order; an operation's inputs come before it.
        attention: attention products in execution order.
        calls: module path of every module call, in execution order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.attention: list[AttentionCall] = []
        self.calls: list[str] = []
        self._made: Any = WeakTensorKeyDictionary()  # tensor -> its operation
        self._stack: list[int] = []
        self._factors: dict[int, tuple[int | None, ...]] = {}  # product -> makers of its factors
        self._scores: dict[int, int] = {}  # operation -> product whose softmax it holds

    def maker(self, tensor: Tensor) -> int | None:
        """Index of the operation that made ``tensor``; None for a tensor from outside."""
        index: int | None = self._made.get(tensor)
        return index

    def source(self, tensor: Tensor) -> None:
        """Register an input of the network."""
        self._add(Op(OpKind.SOURCE, (), tuple(tensor.shape)), [tensor])

    def enter(self, path: str) -> None:
        """Note that a module's forward begins."""
        self._stack.append(len(self.calls))
        self.calls.append(path)

    def leave(self) -> None:
        """Note that the forward of the last entered module ends."""
        self._stack.pop()

    def layer(self, path: str, x: Tensor, output: Tensor) -> None:
        """Record the run of a convolution or linear."""
        source = self.maker(x)
        inputs = () if source is None else (source,)
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
        inputs = tuple(m for t in arguments if (m := self.maker(t)) is not None)
        op = Op(OpKind.OTHER, inputs, tuple(results[0].shape), self._call, name)
        if name == "scaled_dot_product_attention":
            self._fused(op, attention_arguments(args, kwargs), results)
            return
        op.kind = KINDS.get(name, OpKind.OTHER)
        if op.kind is OpKind.CONCAT:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            op.axis = dim % results[0].dim()
            op.parts = tuple(t.shape[op.axis] for t in arguments)
        factors = product_operands(name, args, kwargs) if op.kind is OpKind.PRODUCT else []
        if len(factors) == 2:
            op.macs = product_macs(name, args, factors, results[0])
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
        makers = (self.maker(query), self.maker(key), self.maker(value))
        scores = (*query.shape[:-1], key.shape[-2])
        self._add(op, results)
        self.attention.append(AttentionCall(*makers, op.call, macs, scores, fused=True))

    def _product(self, index: int, op: Op, factors: list[Tensor]) -> None:
        """Record a matrix product, which may be the first or the second one of an attention."""
        makers = tuple(self.maker(t) for t in factors)
        first = next((self._scores[m] for m in makers if m is not None and m in self._scores), None)
        if first is None:
            self._factors[index] = makers
            return
        op.kind = OpKind.ATTENTION
        query, key = self._factors[first]
        value = next((m for m in makers if m is None or m not in self._scores), None)
        product = self.ops[first]
        self.attention.append(
            AttentionCall(
                query, key, value, op.call, (product.macs, op.macs), product.shape, fused=False
            )
        )

    def _follow_scores(self, index: int, op: Op) -> None:
        """Remember which operations hold the softmax of which product."""
        if op.kind is OpKind.SOFTMAX:
            first = self._nearest_product(index)
            if first is not None:
                self._scores[index] = first
        elif op.kind is OpKind.OTHER:
            product = next((self._scores[i] for i in op.inputs if i in self._scores), None)
            if product is not None:
                self._scores[index] = product

    def _nearest_product(self, index: int) -> int | None:
        """The product that a softmax is taken of, behind scaling, masks and changes of shape."""
        passes = {OpKind.OTHER, OpKind.ADD, OpKind.MUL, OpKind.SOFTMAX}
        while self.ops[index].kind in passes and self.ops[index].inputs:
            index = self.ops[index].inputs[0]
        return index if index in self._factors else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _require_batch(path: str, module: QuantizableModule, x: Tensor) -> None:
    """A convolution may be called without a batch axis; its channels are then another axis.

    Raises:
        Unsupported: this one is; names the layer.
    """
    if not isinstance(module, nn.Linear) and x.dim() != module.weight.dim():
        raise Unsupported(
            f"{path}: a convolution of an input {tuple(x.shape)} without a batch axis cannot be "
            "quantized: put an axis of one row in front of it"
        )


@contextmanager
def record_operations(
    model: nn.Module, note: Callable[[str, QuantizableModule, Tensor, Tensor], None]
) -> Iterator[OperationRecorder]:
    """Record every forward pass inside the block.

    Args:
        model: the network.
        note: called with (path, layer, input, output) after every layer's call; a call with an
            empty input, such as no tokens, is no run of the layer.
    """
    recorder = OperationRecorder()

    def enter(path: str) -> Any:
        return lambda module, args: recorder.enter(path)

    def leave(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, QuantizableModule) and args[0].numel():
                _require_batch(path, module, args[0])
                recorder.layer(path, args[0], output)
                note(path, module, args[0], output)
            recorder.leave()

        return hook

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path)))
        handles.append(module.register_forward_hook(leave(path)))
    try:
        with torch.no_grad(), on_host(), recorder:
            yield recorder
    finally:
        for handle in handles:
            handle.remove()
