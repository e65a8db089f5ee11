"""What ``from_pretrained`` does with a network once diffusers has loaded its floats."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from quantarena.bench.errors import UserError
from quantarena.bench.ship.diffusers_quantizer import QuantArenaConfig
from quantarena.bench.ship.packed_network import as_diffusers_model
from quantarena.bench.ship.pipeline_clock import announce_in_pipelines
from quantarena.bench.workloads.row_lists import stack_rows
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.network import SHORT
from quantarena.methods.core.packed.checkpoint import (
    assemble,
    described_of,
    sizes_of,
    tensors_of,
)
from quantarena.methods.core.packed.diffusers_layout import entry_of
from quantarena.methods.core.packed.files import Document, Tensors
from quantarena.methods.core.packed.number_format import lower
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.trace.network import Graph, LayerInfo, Role
from quantarena.methods.rtn import round_without_calibration


def build(
    model: nn.Module,
    entry: Document,
    tensors: Tensors,
    loaded: Collection[str],
    dtype: torch.dtype | None,
) -> None:
    """Turn a network that diffusers made into the packed network that a checkpoint describes.

    Args:
        model: changed in place, its class too.
        entry: its ``quantization_config``, of the present version.
        tensors: what the packed layers need.
        loaded: names of the tensors that diffusers has loaded already.
        dtype: number format outside of the packed layers; None for that of the file.

    Raises:
        BrokenModel: description, tensors and network do not belong together.
    """
    stack_rows(model)
    packed = assemble(entry, tensors, model, f"{type(model).__name__}/config.json", loaded)
    if dtype in SHORT:
        lower(model, dtype)
    as_diffusers_model(packed, entry)
    announce_in_pipelines()


def quantize(model: nn.Module, config: QuantArenaConfig, dtype: torch.dtype | None) -> Document:
    """Pack a network with float weights in place, as ``QuantArenaConfig`` describes it.

    Returns:
        Its ``quantization_config``.

    Raises:
        UserError: it has no repeated blocks, or a layer that does not pack.
    """
    model.eval().requires_grad_(False)
    stack_rows(model)
    graph = untraced(model)
    try:
        quantized = wrap(model, graph, dict.fromkeys(graph.layers, config.widths()))
        round_without_calibration(quantized)
        packed = pack(quantized)
    except Unsupported as error:
        raise UserError(f"{type(model).__name__} does not pack: {error}") from None
    meta: dict[str, Any] = {
        "method": config.method,
        "bits": config.bits,
        "ranges": "at run time",
        "backend": packed.backend,
    }
    tensors = tensors_of(packed)
    entry = entry_of(described_of(packed), tensors, sizes_of(packed, tensors), meta)
    build(model, entry, tensors, (), dtype)
    return entry


def untraced(model: nn.Module) -> Graph:
    """The linear layers and 2-d convolutions in the repeated blocks of a network that never ran.

    Blocks are what is in a ``ModuleList``. Layers outside of them are few, and some networks read
    the weights of theirs without calling them. Roles, order and multiply-accumulates are unknown.

    Raises:
        UserError: there is no such layer.
    """
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    layers = {
        name: LayerInfo(name, Role.LINEAR, 0, 0, module.weight.numel(), kind=_KINDS[type(module)])
        for name, module in model.named_modules()
        if type(module) in _KINDS and any(name.startswith(f"{block}.") for block in lists)
    }
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no repeated blocks with layers to quantize: use "
            "quantarena quantize, which finds layers by running the network"
        )
    return Graph(layers, 0)


_KINDS: dict[type, str] = {nn.Linear: "linear", nn.Conv2d: "conv2d"}
