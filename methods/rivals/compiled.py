"""Full precision through torch.compile, in fp32 or bfloat16."""

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import FP_WIDTH
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.packed.number_format import InFormat
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.info import Capabilities, MethodInfo
from quantarena.methods.options import MethodOptions
from quantarena.methods.registry import register
from quantarena.methods.rival import Prepared, Rival
from quantarena.methods.rivals.held import network_bytes
from quantarena.methods.rivals.stand_in import StandIn


class Compiled(nn.Module):
    """A network through torch.compile; its parameters are the network's."""

    compiled: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.__dict__["compiled"] = torch.compile(network, dynamic=False)

    def forward(self, sample: Tensor, timestep: Any, **conditions: Any) -> Any:
        """The compiled network's output; a timestep for all is spread over the rows."""
        times = torch.as_tensor(timestep, device=sample.device)
        times = times.expand(len(sample)) if times.dim() == 0 else times
        return self.compiled(sample, timestep=times, **conditions)


@register("fp@compile")
class TorchCompile(Rival):
    """The network compiled by inductor, unquantized. It takes minutes, so no preset has it."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of full precision through torch.compile.

        Attributes:
            dtype: of weights and arithmetic.
        """

        dtype: Literal["fp32", "bf16"] = "fp32"

    devices = ("cpu", "cuda")
    info = MethodInfo(
        title="Full precision, torch.compile",
        venue="setting",
        paper="-",
        summary="compiled by inductor, nothing is quantized",
    )
    supports = Capabilities(
        weight_bits=(FP_WIDTH,), act_bits=(FP_WIDTH,), most_iterations=0, board_bits=()
    )
    options: Options

    def prepare(self, ctx: MethodContext, folder: Path) -> Prepared:
        """A compiled copy; the row's notes hold the seconds of its first call."""
        low = self.options.dtype == "bf16"
        network = copy.deepcopy(ctx.model)
        compiled = Compiled(InFormat(network) if low else network)
        points = UniformStride(2).draw(ctx.trajectory, ctx.seed)
        started = time.perf_counter()
        try:
            with torch.no_grad():
                points.call(compiled)
        except Exception as error:  # whatever the compiler's stages raise
            raise Unsupported(f"torch.compile does not work here: {_first(error)}") from None
        return Prepared(
            StandIn(ctx.model, compiled),
            f"{self.options.dtype} torch.compile",
            network_bytes(network),
            float_bits=16 if low else 32,
            notes={"compile_seconds": round(time.perf_counter() - started, 1)},
        )


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
