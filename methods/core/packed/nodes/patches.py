"""A convolution as a linear layer over patches, whose rows have activation ranges of their own."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from torch import Tensor

from quantarena.methods.core.packed.nodes.node import (
    Build,
    Document,
    Node,
    Tensors,
    like_input,
    take,
)
from quantarena.methods.core.packed.nodes.wrappers import Wrapper
from quantarena.methods.core.quantizers.patches import Window


class PatchLayer(Wrapper):
    """A convolution whose output pixels have ranges of their own.

    Attributes:
        window: the input pixels that an output pixel reads.
    """

    form: ClassVar[str] = "patches"

    def __init__(self, inner: Node, window: Window) -> None:
        super().__init__(inner)
        inputs = inner.weight_shape[1]
        if inputs % (window.kernel[0] * window.kernel[1]):
            raise ValueError(f"a kernel of {window.kernel} does not divide {inputs} weights")
        self.window = window

    def run(self, x: Tensor, step: int) -> Tensor:
        """See ``Node.forward``; (batch, in, height, width)."""
        y = self.window.image(self.below(self.inner, self.window.rows(x), step), x)
        last = like_input(y, x)
        return last if last is not y else y.contiguous()

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(O, K, kernel height, kernel width)."""
        out, inputs = self.inner.weight_shape
        height, width = self.window.kernel
        return (out, inputs // (height * width), height, width)

    def describe(self) -> Document:
        """See ``Node``."""
        window = {name: list(pair) for name, pair in asdict(self.window).items()}
        return {**super().describe(), "window": window}

    @classmethod
    def rebuild(cls, document: Mapping[str, Any], tensors: Tensors, build: Build) -> "PatchLayer":
        """See ``Node``."""
        inner = build(document["inner"], take(tensors, "inner."))
        return cls(inner, Window.of(**document["window"]))
