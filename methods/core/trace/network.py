"""The graph of a network, read from one forward pass: layers, MACs, roles, splits, attention.

No architecture is known here: operations are recorded (``operations``) and interpreted (``roles``).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.nested import prediction
from quantarena.methods.core.trace.attention_info import (
    AttentionInfo,
    AttentionKind,
    attention_infos,
)
from quantarena.methods.core.trace.operation import OpKind
from quantarena.methods.core.trace.operations import QuantizableModule, record_operations
from quantarena.methods.core.trace.role_reader import RoleReader
from quantarena.methods.core.trace.roles import Role, roles

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
    """One convolution or linear layer in the traced pass.

    Attributes:
        name: module path.
        role: role of the layer.
        order: position in execution order.
        macs: multiply-accumulates for one image.
        weights: number of weight values.
        splits: channel widths of the concatenated halves of its input, deep half first; empty
            where the input is no concatenation.
        kind: ``linear``, ``conv1d`` or ``conv2d``.
        dtype: type of the numbers that it is given, or that it gives where only these are not
            float32.
    """

    name: str
    role: Role
    order: int
    macs: int
    weights: int
    splits: tuple[int, ...] = ()
    kind: str = ""
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, slots=True)
class Graph:
    """The layers of a network in execution order.

    Attributes:
        layers: layers by module path.
        other_macs: multiply-accumulates for one image outside these layers, in attention and any
            other product of two computed tensors.
        attention: attention products by the path of the module that computes them; their
            multiply-accumulates are part of ``other_macs``.
    """

    layers: Mapping[str, LayerInfo]
    other_macs: int
    attention: Mapping[str, AttentionInfo] = field(default_factory=dict)

    @property
    def total_macs(self) -> int:
        """All multiply-accumulates for one image."""
        return sum(layer.macs for layer in self.layers.values()) + self.other_macs

    def inside(self, paths: Collection[str]) -> set[str]:
        """The layers that are in these modules, or are them."""
        return {n for n in self.layers for p in paths if n == p or n.startswith(f"{p}.")}


@dataclass(slots=True)
class _LayerRuns:
    """The runs of one layer during the trace."""

    module: QuantizableModule
    output_numel: int = 0
    dtype: torch.dtype = torch.float32


def trace(model: nn.Module, *args: Any, **kwargs: Any) -> Graph:
    """Run ``model`` once and read its graph.

    Args:
        model: any network of convolutions and linears, in evaluation mode.
        args: inputs; the first one is the noisy sample, whose leading size is the batch.
        kwargs: further inputs.

    Raises:
        BrokenModel: the network has no convolution or linear layer, or produces NaN.
    """
    runs: dict[str, _LayerRuns] = {}

    def note(path: str, module: QuantizableModule, x: Tensor, output: Tensor) -> None:
        run = runs.setdefault(path, _LayerRuns(module))
        run.output_numel += output.numel()
        if run.dtype is torch.float32:
            run.dtype = output.dtype if x.dtype is torch.float32 else x.dtype

    with record_operations(model, note) as recorder:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                recorder.source(value)
        output = model(*args, **kwargs)
    if not runs:
        raise BrokenModel(f"{type(model).__name__} has no convolution or linear layer to quantize")
    result = prediction(output, model)
    if not bool(torch.isfinite(result).all()):
        raise BrokenModel(f"{type(model).__name__} produces NaN or infinity in full precision")
    batch = args[0].shape[0]
    reader = RoleReader(recorder, 0, batch, {path: run.module for path, run in runs.items()})
    attention = attention_infos(recorder, reader, batch)
    operands = {
        path for info in attention.values() for path in (*info.query, *info.key, *info.value)
    }
    output_op = recorder.maker(result)
    role_of = roles(reader, () if output_op is None else (output_op,), operands)
    layers = {
        path: LayerInfo(
            name=path,
            role=role_of[path],
            order=index,
            macs=run.output_numel * run.module.weight[0].numel() // batch,
            weights=run.module.weight.numel(),
            splits=reader.splits(path),
            kind=_layer_kind(run.module),
            dtype=run.dtype,
        )
        for index, (path, run) in enumerate(runs.items())
    }
    products = {OpKind.PRODUCT, OpKind.ATTENTION}
    other = sum(op.macs for op in recorder.ops if op.kind in products)
    return Graph(layers, other // batch, attention)


def _layer_kind(module: QuantizableModule) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    return f"conv{len(module.kernel_size)}d"
