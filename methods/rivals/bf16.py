"""Full precision in bfloat16: weights, arithmetic and activations."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import FP_WIDTH
from quantarena.methods.core.packed.number_format import InFormat
from quantarena.methods.core.packed.pack import channels_last
from quantarena.methods.info import Capabilities, MethodInfo
from quantarena.methods.options import MethodOptions
from quantarena.methods.registry import register
from quantarena.methods.rival import Prepared, Rival
from quantarena.methods.rivals.held import network_bytes
from quantarena.methods.rivals.stand_in import StandIn


@register("fp@bf16")
class Bfloat16(Rival):
    """The network in bfloat16, unquantized."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of full precision in bfloat16.

        Attributes:
            layout: order of an image's numbers in memory.
        """

        layout: Literal["contiguous", "channels_last"] = "contiguous"

    devices = ("cpu", "cuda")
    info = MethodInfo(
        title="Full precision, bf16",
        venue="setting",
        paper="-",
        summary="weights and arithmetic in bfloat16, nothing is quantized",
    )
    supports = Capabilities(
        weight_bits=(FP_WIDTH,), act_bits=(FP_WIDTH,), most_iterations=0, board_bits=("fp",)
    )
    options: Options

    def prepare(self, ctx: MethodContext, folder: Path) -> Prepared:
        """A copy in bfloat16."""
        network: nn.Module = InFormat(copy.deepcopy(ctx.model))
        if self.options.layout == "channels_last":
            channels_last(network)
        name = "eager" if self.options.layout == "contiguous" else self.options.layout
        emulated = ctx.device.type == "cpu" and not computes_bf16()
        lines = (
            () if not emulated else ("this processor has no bfloat16 arithmetic: it is emulated",)
        )
        return Prepared(
            StandIn(ctx.model, network),
            f"bf16 {name}",
            network_bytes(network),
            float_bits=16,
            lines=lines,
        )


def computes_bf16() -> bool:
    """Whether this processor multiplies bfloat16; torch has no public name for the question."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)())
