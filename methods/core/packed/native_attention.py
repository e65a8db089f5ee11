"""The attention mode of packed networks: products by the integer kernels, where these apply."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from quantarena.methods.core.model.attention import OPERANDS
from quantarena.methods.core.model.attention_mode import Mode, Products
from quantarena.methods.core.packed.nodes import attention as kernels
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.quantizers.log import LogQuantizer


def kernel_products(products: Products) -> kernels.Products | None:
    """The quantizers as the kernels take them; None where an operand stays in floating point."""
    quantizers = dict(products.quantizers.items())
    static = [q for q in map(quantizers.get, OPERANDS[:3]) if isinstance(q, ActQuantizer)]
    softmax = quantizers.get("softmax")
    if len(static) < 3 or not isinstance(softmax, ActQuantizer | LogQuantizer):
        return None
    query, key, value = static
    return kernels.Products(query, key, value, softmax, products.excluded)


@dataclass(frozen=True, slots=True)
class Native(Mode):
    """Integer kernels; where they do not apply, the exact sums in floating point of ``Fake``."""

    quantizes: ClassVar[bool] = True

    def scores(self, products: Products, query: Tensor, key: Tensor) -> Tensor | None:
        """See ``Mode``."""
        given = kernel_products(products)
        return None if given is None else kernels.scores(given, query, key)

    def mix(self, products: Products, probs: Tensor, value: Tensor) -> Tensor | None:
        """See ``Mode``."""
        given = kernel_products(products)
        return None if given is None else kernels.mix(given, probs, value)

    def attend(
        self,
        products: Products,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        factor: float,
    ) -> Tensor | None:
        """See ``Mode``."""
        given = kernel_products(products)
        return None if given is None else kernels.attend(given, query, key, value, mask, factor)
