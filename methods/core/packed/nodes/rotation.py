"""Rotated input channels in front of a packed layer (ViDiT-Q)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.float_ops import rotated
from quantarena.methods.core.packed.nodes.node import Build, Node, Tensors, take
from quantarena.methods.core.packed.nodes.wrappers import Wrapper


class RotationLayer(Wrapper):
    """``inner(rotate(factor * x))``, see ``core.rotation``; in float32.

    Attributes:
        factor: (K,), scales and signs of the input channels, the division by sqrt(K) included.
    """

    form: ClassVar[str] = "rotation"
    factor: Tensor

    def __init__(self, inner: Node, factor: Tensor) -> None:
        """Takes a linear layer.

        Raises:
            ValueError: another kind of layer, or factors that do not fit.
        """
        super().__init__(inner)
        if len(inner.weight_shape) != 2 or factor.shape != inner.weight_shape[1:]:
            raise ValueError(
                f"rotation factors of {tuple(factor.shape)} do not fit a weight of "
                f"{inner.weight_shape}"
            )
        self.register_buffer("factor", factor.detach().clone())

    def run(self, x: Tensor, step: int) -> Tensor:
        """See ``Node.forward``."""
        return self.below(self.inner, rotated(native.library(), x, self.factor), step)

    @classmethod
    def rebuild(
        cls, document: Mapping[str, Any], tensors: Tensors, build: Build
    ) -> "RotationLayer":
        """See ``Node``."""
        inner = build(document["inner"], take(tensors, "inner."))
        return cls(inner, tensors.pop("factor"))
