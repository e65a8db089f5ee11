"""torchao: PyTorch's library of quantized tensors, on the linear layers."""

import copy
from pathlib import Path
from typing import Any

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import FP_WIDTH, Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.info import Capabilities, MethodInfo
from quantarena.methods.registry import register
from quantarena.methods.rival import Prepared, Rival
from quantarena.methods.rivals.held import act_bits, network_bytes, observed_widths, untouched
from quantarena.methods.rivals.stand_in import StandIn

WEIGHTS_8, BOTH_8, WEIGHTS_4 = Bits(8, FP_WIDTH), Bits(8, 8), Bits(4, FP_WIDTH)
_NAMES = {
    WEIGHTS_8: "int8 weight-only",
    BOTH_8: "int8 dynamic",
    WEIGHTS_4: "int4 weight-only",
}


@register("torchao")
class TorchAo(Rival):
    """Weights by output channel; inputs by token, found at run time. No calibration."""

    devices = ("cpu", "cuda")
    info = MethodInfo(
        title="torchao",
        venue="library",
        paper="-",
        summary="quantize_ on linear layers: int8 weights, int8 weights and inputs, int4 weights",
        url="https://github.com/pytorch/ao",
        licence="BSD-3-Clause",
    )
    # int4 needs kernels that exist for CUDA only, so it is on no board; asked for, it says so
    supports = Capabilities(
        weight_bits=(4, 8),
        act_bits=(8, FP_WIDTH),
        most_iterations=0,
        board_bits=("w8a16", "w8a8"),
    )
    needs = ("torchao",)

    def check(self, bits: Bits, variant: str, policy: str = UNIFORM.name) -> None:
        """Refuse 4-bit weights with 8-bit inputs as well: torchao has them for CUDA only."""
        super().check(bits, variant, policy)
        if bits not in _NAMES:
            raise Unsupported(f"torchao has no {bits} here: take {', '.join(map(str, _NAMES))}")

    def prepare(self, ctx: MethodContext, folder: Path) -> Prepared:
        """A copy whose linear layers hold torchao's tensors."""
        from torchao.quantization import quantize_

        network = copy.deepcopy(ctx.model)
        try:
            quantize_(network, _config(ctx.bits))
        except (ImportError, NotImplementedError) as error:
            raise Unsupported(f"torchao's {_NAMES[ctx.bits]} does not run here: {error}") from None
        widths = observed_widths(network, ctx.graph.layers, act_bits)
        return Prepared(
            StandIn(ctx.model, network),
            f"torchao {_NAMES[ctx.bits]}",
            network_bytes(network),
            widths,
            lines=untouched(ctx.graph.layers, widths),
        )


def _config(bits: Bits) -> Any:
    from torchao import quantization as ao

    if bits == WEIGHTS_8:
        return ao.Int8WeightOnlyConfig()
    if bits == BOTH_8:
        return ao.Int8DynamicActivationInt8WeightConfig()
    return ao.Int4WeightOnlyConfig(group_size=32)
