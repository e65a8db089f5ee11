"""PyTorch's own dynamic quantization of linear layers, which needs no other library."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import Bits
from quantarena.methods.info import Capabilities, MethodInfo
from quantarena.methods.registry import register
from quantarena.methods.rival import Prepared, Rival
from quantarena.methods.rivals.held import network_bytes, untouched
from quantarena.methods.rivals.stand_in import StandIn

SATURATES = (
    "torch's int8 kernels for AVX2 add pairs of products in 16 bits, which can saturate: torch "
    "uses 7 bits of an input there, or clips sums"
)
SCALE_BYTES = 16
"""A scale and a zero point by tensor, 8 bytes each."""


@register("torch_dynamic")
class TorchDynamic(Rival):
    """int8 weights by tensor; int8 inputs by tensor, found at run time. No calibration."""

    info = MethodInfo(
        title="torch dynamic int8",
        venue="library",
        paper="-",
        summary="torch.ao.quantization.quantize_dynamic on linear layers",
        url="https://docs.pytorch.org/docs/stable/quantization.html",
        licence="BSD-3-Clause",
    )
    supports = Capabilities(
        weight_bits=(8,), act_bits=(8,), most_iterations=0, board_bits=("w8a8",)
    )

    def prepare(self, ctx: MethodContext, folder: Path) -> Prepared:
        """A copy with torch's dynamically quantized linear layers."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the function is deprecated in favour of torchao
            from torch.ao.quantization import quantize_dynamic

            change: Any = quantize_dynamic
            network = change(copy.deepcopy(ctx.model), {nn.Linear}, dtype=torch.qint8)
        held = {
            name: module
            for name, module in network.named_modules()
            if name in ctx.graph.layers and callable(getattr(module, "weight", None))
        }
        lines = untouched(ctx.graph.layers, held)
        return Prepared(
            StandIn(ctx.model, network),
            "torch dynamic int8",
            network_bytes(network) + sum(map(_bytes, held.values())),
            {name: Bits(8 * module.weight().element_size(), 8) for name, module in held.items()},
            lines=lines + ((SATURATES,) if _on_avx2() else ()),
        )


def _on_avx2() -> bool:
    """Whether torch runs its own kernels for AVX2; which unit ours use says nothing of that."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def _bytes(module: Any) -> int:
    """Bytes of a layer's weight and bias, which are no parameters of its module."""
    weight, bias = module.weight(), module.bias()
    extra = 0 if bias is None else bias.numel() * bias.element_size()
    return int(weight.numel() * weight.element_size() + SCALE_BYTES + extra)
