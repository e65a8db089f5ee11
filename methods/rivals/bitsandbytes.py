"""bitsandbytes: named here so that its row says why it does not run."""

from pathlib import Path

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import FP_WIDTH, Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.info import Capabilities, MethodInfo
from quantarena.methods.registry import register
from quantarena.methods.rival import Prepared, Rival

ON_CUDA = "bitsandbytes has its kernels for CUDA, and images are drawn on the CPU here"


@register("bitsandbytes")
class BitsAndBytes(Rival):
    """nf4 and int8 weights of linear layers; refused as long as the stages run on the CPU."""

    info = MethodInfo(
        title="bitsandbytes",
        venue="library",
        paper="-",
        summary="nf4 or int8 weights of linear layers, on CUDA only",
        url="https://github.com/bitsandbytes-foundation/bitsandbytes",
        licence="MIT",
    )
    supports = Capabilities(
        weight_bits=(4, 8), act_bits=(FP_WIDTH,), most_iterations=0, board_bits=()
    )

    def check(self, bits: Bits, variant: str, policy: str = UNIFORM.name) -> None:
        """Refuse every request, with the reason."""
        super().check(bits, variant, policy)
        raise Unsupported(ON_CUDA)

    def prepare(self, ctx: MethodContext, folder: Path) -> Prepared:
        """Never reached."""
        raise Unsupported(ON_CUDA)
