"""What one forward pass tells of a network: layers in order, MACs, roles, splits, attention.

Nothing here knows an architecture: what flows where is recorded (``flow``) and read (``roles``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.trace.operations import (
    AttentionCall,
    OpKind,
    QuantizableModule,
    Recorder,
    recording,
)
from quantarena.methods.core.trace.roles import Flow, Role, roles

__all__ = [
    "AttentionInfo",
    "AttentionKind",
    "Graph",
    "LayerInfo",
    "QuantizableModule",
    "Role",
    "trace",
]


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
        kind: ``linear``, ``conv1d`` or ``conv2d``.
    """

    name: str
    role: Role
    order: int
    macs: int
    weights: int
    splits: tuple[int, ...] = ()
    kind: str = ""


class AttentionKind(StrEnum):
    """Whose tokens the keys are: the queries' own, others', or two streams joined."""

    SELF = "self"
    CROSS = "cross"
    JOINT = "joint"


@dataclass(frozen=True, slots=True)
class AttentionInfo:
    """The attention products of one module: ``softmax(q k) v``.

    Attributes:
        name: path of the innermost module whose forward computes them.
        kind: self, cross or joint.
        order: position among the attention products.
        heads: matrices of one image.
        queries, keys: tokens.
        qk_macs, av_macs: multiply-accumulates of one image in ``q k`` and in ``softmax v``.
        query, key, value: paths of the layers that make the operands.
        fused: one call of ``scaled_dot_product_attention``, not products and a softmax.
        products: attentions in one call of the module; 1 but where a module mixes several.
    """

    name: str
    kind: AttentionKind
    order: int
    heads: int
    queries: int
    keys: int
    qk_macs: int
    av_macs: int
    query: tuple[str, ...]
    key: tuple[str, ...]
    value: tuple[str, ...]
    fused: bool
    products: int = 1

    @property
    def macs(self) -> int:
        """Of one image, both products."""
        return self.qk_macs + self.av_macs


@dataclass(frozen=True, slots=True)
class Graph:
    """The layers of a network in execution order.

    Attributes:
        layers: by module path.
        other_macs: multiply-accumulates of one image outside these layers: attention and any other
            product of two computed tensors.
        attention: attention products by the path of the module that computes them; part of
            ``other_macs``.
    """

    layers: Mapping[str, LayerInfo]
    other_macs: int
    attention: Mapping[str, AttentionInfo] = field(default_factory=dict)

    @property
    def total_macs(self) -> int:
        """All multiply-accumulates of one image."""
        return sum(layer.macs for layer in self.layers.values()) + self.other_macs


@dataclass(slots=True)
class _Seen:
    """Calls of one layer during the trace."""

    module: QuantizableModule
    output_numel: int


def trace(model: nn.Module, *args: Any, **kwargs: Any) -> Graph:
    """Run ``model`` once and read its graph.

    Args:
        model: any network of convolutions and linears, in evaluation mode.
        args: the inputs; the first one is the noisy sample, whose leading size is the batch.
        kwargs: more inputs.

    Raises:
        BrokenModel: the network has no convolution or linear layer, or produces NaN.
    """
    seen: dict[str, _Seen] = {}

    def note(path: str, module: QuantizableModule, x: Tensor, output: Tensor) -> None:
        if path in seen:
            seen[path].output_numel += output.numel()
        else:
            seen[path] = _Seen(module, output.numel())

    with recording(model, note) as recorder:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                recorder.source(value)
        output = model(*args, **kwargs)
    if not seen:
        raise BrokenModel(f"{type(model).__name__} has no convolution or linear layer to quantize")
    result = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
    if not bool(torch.isfinite(result).all()):
        raise BrokenModel(f"{type(model).__name__} produces NaN or infinity in full precision")
    batch = args[0].shape[0]
    flow = Flow(recorder, 0, batch, {path: call.module for path, call in seen.items()})
    attention = _attention(recorder, flow, batch)
    operands = {
        path for info in attention.values() for path in (*info.query, *info.key, *info.value)
    }
    made = recorder.made(result)
    found = roles(flow, () if made is None else (made,), operands)
    layers = {
        path: LayerInfo(
            name=path,
            role=found[path],
            order=index,
            macs=call.output_numel * call.module.weight[0].numel() // batch,
            weights=call.module.weight.numel(),
            splits=flow.splits(path),
            kind=_layer_kind(call.module),
        )
        for index, (path, call) in enumerate(seen.items())
    }
    products = {OpKind.PRODUCT, OpKind.ATTENTION}
    other = sum(op.macs for op in recorder.ops if op.kind in products)
    return Graph(layers, other // batch, attention)


def _layer_kind(module: QuantizableModule) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    return f"conv{len(module.kernel_size)}d"


def _attention(recorder: Recorder, flow: Flow, batch: int) -> dict[str, AttentionInfo]:
    by_path: dict[str, list[AttentionCall]] = {}
    for call in recorder.attention:
        path = recorder.calls[call.call] if call.call >= 0 else ""
        by_path.setdefault(path, []).append(call)
    return {
        path: _attention_info(path, order, calls, flow, batch)
        for order, (path, calls) in enumerate(by_path.items())
    }


def _attention_info(
    path: str, order: int, calls: list[AttentionCall], flow: Flow, batch: int
) -> AttentionInfo:
    first = calls[0]
    *outer, queries, keys = first.scores
    heads = 1
    for length in outer:
        heads *= length
    query, key = flow.feeding(first.query), flow.feeding(first.key)
    return AttentionInfo(
        name=path,
        kind=_kind(flow, query, key),
        order=order,
        heads=max(1, heads // batch),
        queries=queries,
        keys=keys,
        qk_macs=sum(call.macs[0] for call in calls) // batch,
        av_macs=sum(call.macs[1] for call in calls) // batch,
        query=query,
        key=key,
        value=flow.feeding(first.value),
        fused=first.fused,
        products=max(sum(c.call == call.call for c in calls) for call in calls),
    )


def _kind(flow: Flow, query: tuple[str, ...], key: tuple[str, ...]) -> AttentionKind:
    """Cross where queries and keys come from other tensors; joint where from the same two."""
    origins = [{i for path in paths for i in flow.inputs(path)} for paths in (query, key)]
    if origins[0] != origins[1]:
        return AttentionKind.CROSS
    return AttentionKind.JOINT if len(origins[0]) > 1 else AttentionKind.SELF
