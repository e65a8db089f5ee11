"""What one forward pass tells of a network: layers in order, MACs, roles, skip concatenations.

Nothing here knows an architecture. A layer's role follows from what flows through it: a linear that
sees one row per image lies on the conditioning path, a 1x1 convolution fed by a concatenation is a
shortcut, the first convolution is the input, the last layer is the output.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantarena.methods.core.errors import BrokenModel

QuantizableModule = nn.Conv2d | nn.Linear


class Role(StrEnum):
    """What a layer does in the network."""

    INPUT = "input"
    OUTPUT = "output"
    TIME_EMBED = "time_embed"
    EMB_PROJ = "emb_proj"
    SHORTCUT = "shortcut"
    DOWNSAMPLE = "downsample"
    QKV = "qkv"
    ATTN_OUT = "attn_out"
    CONV = "conv"
    LINEAR = "linear"


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One convolution or linear layer as the traced pass saw it.

    Attributes:
        name: module path.
        role: what it does.
        order: position in execution.
        macs: multiply-accumulates of one image.
        weights: number of weight values.
        splits: channel widths of the concatenated halves of its input, deep half first; empty
            where the input is no concatenation.
    """

    name: str
    role: Role
    order: int
    macs: int
    weights: int
    splits: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """The layers of a network in execution order.

    Attributes:
        layers: by module path.
        other_macs: multiply-accumulates of one image outside these layers (attention products),
            which stay in floating point.
    """

    layers: Mapping[str, LayerInfo]
    other_macs: int

    @property
    def total_macs(self) -> int:
        """All multiply-accumulates of one image."""
        return sum(layer.macs for layer in self.layers.values()) + self.other_macs


_ADDED_PRODUCTS = {torch.baddbmm, Tensor.baddbmm}
_PRODUCTS = {
    torch.bmm, torch.matmul, Tensor.bmm, Tensor.matmul, Tensor.__matmul__, *_ADDED_PRODUCTS,
}  # fmt: skip
"""How the products of attention are written where they are not one fused call."""


class _Watch(TorchFunctionMode):
    """Remembers channel concatenations and counts the products of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.concats: dict[int, tuple[int, ...]] = {}
        self.attention_macs = 0
        self._alive: list[Tensor] = []  # a freed tensor's address could be reused

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in (torch.cat, torch.concat):
            self._concat(result, args, kwargs)
        elif func is nn.functional.scaled_dot_product_attention:
            query, key = args[0], args[1] if len(args) > 1 else kwargs["key"]
            self.attention_macs += 2 * query.numel() * key.shape[-2]
        elif func in _PRODUCTS and isinstance(result, Tensor):
            inner = args[1 if func in _ADDED_PRODUCTS else 0].shape[-1]
            self.attention_macs += result.numel() * inner
        return result

    def _concat(self, result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        parts = args[0] if args else kwargs["tensors"]
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        if dim % result.dim() == 1 and result.dim() == 4 and len(parts) > 1:
            self._alive.append(result)
            self.concats[result.data_ptr()] = tuple(part.shape[1] for part in parts)


@dataclass(slots=True)
class _Seen:
    """One call of one layer during the trace."""

    module: QuantizableModule
    input_shape: tuple[int, ...]
    output_numel: int
    splits: tuple[int, ...]
    calls: int = 1


def trace(model: nn.Module, *args: Any, **kwargs: Any) -> Graph:
    """Run ``model`` once and read its graph.

    Args:
        model: any network of convolutions and linears, in evaluation mode.
        args: the inputs; the first one is the noisy sample, whose leading size is the batch.
        kwargs: more inputs.

    Raises:
        BrokenModel: the network has no convolution or linear layer, or produces NaN.
    """
    names = {m: n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    seen: dict[str, _Seen] = {}
    watch = _Watch()

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name, x = names[module], inputs[0]  # type: ignore[index]
        if name in seen:
            seen[name].calls += 1
            return
        splits = watch.concats.get(x.data_ptr(), ()) if isinstance(module, nn.Conv2d) else ()
        if sum(splits) != x.shape[1]:
            splits = ()
        seen[name] = _Seen(module, tuple(x.shape), output.numel(), splits)  # type: ignore[arg-type]

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with torch.no_grad(), watch:
            output = model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise BrokenModel(f"{type(model).__name__} has no convolution or linear layer to quantize")
    result = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
    if not bool(torch.isfinite(result).all()):
        raise BrokenModel(f"{type(model).__name__} produces NaN or infinity in full precision")
    batch = args[0].shape[0]
    layers = {
        name: LayerInfo(
            name=name,
            role=_role(model, name, call, index, len(seen), batch),
            order=index,
            macs=_macs(call) // batch,
            weights=call.module.weight.numel(),
            splits=call.splits,
        )
        for index, (name, call) in enumerate(seen.items())
    }
    return Graph(_with_input(layers, seen), watch.attention_macs // batch)


def _macs(call: _Seen) -> int:
    return call.output_numel * (call.module.weight[0].numel()) * call.calls


def _parent(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _role(model: nn.Module, name: str, call: _Seen, index: int, count: int, batch: int) -> Role:
    module, parent = call.module, _parent(model, name)
    if index == count - 1:
        return Role.OUTPUT
    if isinstance(module, nn.Linear):
        if len(call.input_shape) == 2 and call.input_shape[0] == batch:
            alone = all(isinstance(m, nn.Linear) for m in parent.children() if list(m.parameters()))
            return Role.TIME_EMBED if alone else Role.EMB_PROJ
        owner = (
            _parent(model, name.rpartition(".")[0]) if isinstance(parent, nn.ModuleList) else parent
        )
        if hasattr(owner, "to_q"):
            return Role.ATTN_OUT if owner is not parent else Role.QKV
        return Role.LINEAR
    if call.splits and module.kernel_size == (1, 1):
        return Role.SHORTCUT
    if module.kernel_size == (1, 1) and any(
        isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1) for m in parent.children()
    ):
        return Role.SHORTCUT
    if max(module.stride) > 1:
        return Role.DOWNSAMPLE
    return Role.CONV


def _with_input(layers: dict[str, LayerInfo], seen: Mapping[str, _Seen]) -> dict[str, LayerInfo]:
    """Mark the first layer off the conditioning path as the input."""
    conditioning = {Role.TIME_EMBED, Role.EMB_PROJ}
    first = next((n for n, layer in layers.items() if layer.role not in conditioning), None)
    if first is not None and layers[first].role is not Role.OUTPUT:
        info = layers[first]
        layers[first] = LayerInfo(
            info.name, Role.INPUT, info.order, info.macs, info.weights, info.splits
        )
    return layers
