"""Puts quantized attention products into a network without replacing a module.

The module's forward runs as it is, inside a mode that computes the attention products with a
``QuantAttention``: hooks on the module enter and leave the mode. The ``QuantAttention`` is a child
of the module and its hooks are its own methods, so a copy of the network has hooks that belong to
its own copy.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from quantarena.methods.core.bits import AttentionBits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import BrokenModel, Unsupported
from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.trace.network import Graph
from quantarena.methods.core.trace.operation import function_name, product_operands

CHILD = "quantized_products"
"""Name under which a module holds its ``QuantAttention``."""


class _Products(TorchFunctionMode):
    """Computes the attention products of one call of a module."""

    def __init__(self, quant: QuantAttention) -> None:
        super().__init__()
        self.quant = quant
        self.attentions = 0
        self._scores: Any = WeakTensorKeyDictionary()  # result of the first product, till softmax
        self._probs: Any = WeakTensorKeyDictionary()  # result of softmax, till the second product

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            self.attentions += 1
            return self.quant.attend(*args, **kwargs)
        if self.quant.info.fused:
            return func(*args, **kwargs)
        return self._written(func, function_name(func), args, kwargs)

    def _written(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Attention as a product, a softmax and a product: tensors in between are followed."""
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        probs, scores = (any(t in d for t in tensors) for d in (self._probs, self._scores))
        if name in {"bmm", "matmul", "__matmul__", "baddbmm"}:
            factors = product_operands(name, args, kwargs)
            if probs:
                self.attentions += 1
                return self._second(*factors)
            if not scores and all(t.dim() >= 3 for t in factors):
                result = self._first(name, args, kwargs, *factors)
                self._scores[result] = True
                return result
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and (probs or scores):
            done = probs or name == "softmax"
            (self._probs if done else self._scores)[result] = True
        return result

    def _first(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], left: Tensor, right: Tensor
    ) -> Tensor:
        keys = self.quant.by_head(right).mT
        product = self.quant.scores(self.quant.by_head(left), keys)
        product = product.reshape(*left.shape[:-1], right.shape[-1])
        if name != "baddbmm":
            return product
        alpha: float = kwargs.get("alpha", 1)
        beta: float = kwargs.get("beta", 1)
        product = product * alpha
        summand: Tensor = args[0] if args else kwargs["input"]
        # with beta 0 the summand may be uninitialised memory
        return product if beta == 0 else product + beta * summand

    def _second(self, left: Tensor, right: Tensor) -> Tensor:
        shape = (*left.shape[:-1], right.shape[-1])
        if left in self._probs:
            return self.quant.mix(self.quant.by_head(left), self.quant.by_head(right)).reshape(
                shape
            )
        probs, value = (self.quant.by_head(t).transpose(-1, -2) for t in (right, left))
        return self.quant.mix(probs, value).transpose(-1, -2).reshape(shape)


class _Hooks(nn.Module):
    """The child of a module that holds its ``QuantAttention`` and the hooks around its forward."""

    def __init__(self, quant: QuantAttention) -> None:
        super().__init__()
        self.quant = quant
        self._modes: dict[int, list[_Products | None]] = {}  # by thread

    def enter(self, module: nn.Module, args: Any) -> None:
        """Before the module's forward."""
        mode = _Products(self.quant) if self.quant.active else None
        self._modes.setdefault(threading.get_ident(), []).append(mode)
        if mode is not None:
            mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the module's forward, or after it failed.

        Raises:
            BrokenModel: it computed other products than the traced pass saw.
        """
        modes = self._modes.get(threading.get_ident())
        mode = modes.pop() if modes else None
        if mode is None:
            return
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if output is not None and mode.attentions != 1:
            raise BrokenModel(
                f"{self.quant.info.name} computed {mode.attentions} attentions in a call, 1 when "
                "it was traced: trace the network with the attention that it will run with"
            )


def install(root: nn.Module, quant: QuantAttention) -> None:
    """Make the module that ``quant.info.name`` points to compute its products with ``quant``.

    Raises:
        Unsupported: the module computes several attentions in one call.
    """
    info = quant.info
    if info.products != 1:
        raise Unsupported(
            f"{info.name} computes {info.products} attentions in one call: leave attention "
            "in floating point (policy uniform)"
        )
    module = root.get_submodule(info.name)
    hooks = _Hooks(quant)
    module.add_module(CHILD, hooks)
    module.register_forward_pre_hook(hooks.enter)
    module.register_forward_hook(hooks.leave, always_call=True)


def installed(root: nn.Module) -> dict[str, QuantAttention]:
    """The quantized attention products of a network or of its copy, by module path."""
    return {m.quant.info.name: m.quant for m in root.modules() if isinstance(m, _Hooks)}


def wrap_attention(
    module: nn.Module, graph: Graph, widths: Mapping[str, AttentionBits], clock: CallClock
) -> dict[str, QuantAttention]:
    """Quantize attention products of a network that may be changed.

    Args:
        module: the copy of the network that is being quantized.
        graph: trace of the original.
        widths: widths of the operands, by module path as in ``graph.attention``; products that are
            not named or have 16 bits throughout stay as they are.
        clock: the clock of the model.

    Returns:
        The quantized products in execution order, by module path; ranges are not set yet.

    Raises:
        Unsupported: a module computes several attentions in one call.
    """
    products: dict[str, QuantAttention] = {}
    for name, info in graph.attention.items():
        bits = widths.get(name, AttentionBits())
        if not bits.is_fp:
            products[name] = QuantAttention(info, bits, clock)
            install(module, products[name])
    return products
