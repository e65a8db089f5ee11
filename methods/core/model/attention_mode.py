"""The ways in which quantized attention products compute; a ``QuantAttention`` is in one at a time.

``packed.native_attention`` adds the one that runs on integer kernels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

Watch = Callable[[str, Tensor], None]
"""Called with an operand's name and its values, (samples, heads, rows, columns)."""


class Products(Protocol):
    """Quantized attention products, as far as a mode sees them."""

    quantizers: nn.ModuleDict
    excluded: int


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to compute; the base class leaves every operand in floating point.

    Attributes:
        active: whether the products differ from the plain ones, or are watched.
        quantizes: whether operands are quantized.
        integer: whether sums are of integers where operands have codes on both sides.
    """

    active: ClassVar[bool] = True
    quantizes: ClassVar[bool] = False
    integer: ClassVar[bool] = False

    def show(self, operand: str, x: Tensor) -> None:
        """Called with every operand before the products are computed."""

    def scores(self, products: Products, query: Tensor, key: Tensor) -> Tensor | None:
        """``QuantAttention.scores`` in another way; None where the mode has none."""
        return None

    def mix(self, products: Products, probs: Tensor, value: Tensor) -> Tensor | None:
        """``QuantAttention.mix`` in another way; None where the mode has none."""
        return None

    def attend(
        self,
        products: Products,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        factor: float,
    ) -> Tensor | None:
        """Both products and the softmax at once; None where the mode has no way to do that."""
        return None


@dataclass(frozen=True, slots=True)
class Plain(Mode):
    """Operands in floating point; the module computes as in the original network."""

    active: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Fake(Mode):
    """Quantized operands, sums in floating point that are exact; differentiable."""

    quantizes: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class IntegerOracle(Mode):
    """Sums of 64-bit integers, log codes by shifts: slow, without gradient.

    The sums of the other modes are compared with these.
    """

    quantizes: ClassVar[bool] = True
    integer: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Watched(Mode):
    """Operands in floating point, each shown to a function.

    Attributes:
        watch: the function.
    """

    watch: Watch

    def show(self, operand: str, x: Tensor) -> None:
        """See ``Mode``."""
        self.watch(operand, x)
