"""Full precision through OpenVINO, in fp32 and in bfloat16."""

from pathlib import Path
from typing import ClassVar

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import FP_WIDTH, Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.info import Capabilities, MethodInfo
from quantarena.methods.registry import register
from quantarena.methods.rival import Prepared, Rival
from quantarena.methods.rivals import ov_network
from quantarena.methods.rivals.stand_in import StandIn

URL, LICENCE = "https://github.com/openvinotoolkit/openvino", "Apache-2.0"


class _OpenVino(Rival):
    """The network converted once, and compiled for each number of rows."""

    precision: ClassVar[str]
    needs = ("openvino",)

    def build(self, ctx: MethodContext, folder: Path) -> None:
        """Convert the network from one recorded call."""
        points = UniformStride(2).draw(ctx.trajectory, ctx.seed)
        ov_network.save(ov_network.convert(ctx.model, points), folder)

    def prepare(self, ctx: MethodContext, folder: Path) -> Prepared:
        """The converted network in this class's precision."""
        network = ov_network.OpenVinoNetwork(folder / ov_network.MODEL, self.precision)
        points = UniformStride(2).draw(ctx.trajectory, ctx.seed)
        compiled = network.compiled_for(points)
        low = self.precision == ov_network.BF16
        return Prepared(
            StandIn(ctx.model, network),
            "openvino bf16" if low else "openvino fp32",
            ov_network.constant_bytes(compiled),
            float_bits=16 if low else 32,
            lines=("OpenVINO keeps the weights in fp32 beside bfloat16 copies",) if low else (),
        )


@register("fp@openvino")
class OpenVinoFp32(_OpenVino):
    """fp32 throughout, which has to be asked for where bfloat16 is OpenVINO's default."""

    info = MethodInfo(
        title="Full precision, OpenVINO fp32",
        venue="setting",
        paper="-",
        summary="the network in fp32 on OpenVINO's CPU kernels, nothing is quantized",
        url=URL,
        licence=LICENCE,
    )
    supports = Capabilities(
        weight_bits=(FP_WIDTH,), act_bits=(FP_WIDTH,), most_iterations=0, board_bits=("fp",)
    )
    precision = ov_network.F32


@register("fp@openvino-bf16")
class OpenVinoBf16(_OpenVino):
    """Arithmetic in bfloat16, on processors that have it."""

    info = MethodInfo(
        title="Full precision, OpenVINO bf16",
        venue="setting",
        paper="-",
        summary="the network in bfloat16 on OpenVINO's CPU kernels, nothing is quantized",
        url=URL,
        licence=LICENCE,
    )
    supports = Capabilities(
        weight_bits=(FP_WIDTH,), act_bits=(FP_WIDTH,), most_iterations=0, board_bits=("fp",)
    )
    precision = ov_network.BF16

    def check(self, bits: Bits, variant: str, policy: str = UNIFORM.name) -> None:
        """Refuse processors on which OpenVINO would emulate bfloat16."""
        super().check(bits, variant, policy)
        if not ov_network.has_bf16():
            raise Unsupported("OpenVINO finds no bfloat16 arithmetic on this processor")
