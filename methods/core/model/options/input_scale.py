"""A multiplier for each input channel, taken out of the weight (smoothing, dilation)."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.model.options.option import Host, LayerOption, Operand
from quantarena.methods.core.quantizers.part import Part


def scale_input(weight: Tensor, factor: Tensor) -> Tensor:
    """``weight`` with input channel k multiplied by ``factor[k]``.

    Args:
        weight: (O, K) or (O, K, ...).
        factor: (K,).

    Raises:
        ValueError: the factor is not (K,). A grouped convolution's weight has fewer input channels
            than its input, so it ends here.
    """
    if weight.dim() < 2 or factor.shape != weight.shape[1:2]:
        raise ValueError(
            f"a factor of shape {tuple(factor.shape)} does not fit the input channels of a weight "
            f"of shape {tuple(weight.shape)}"
        )
    return weight * factor.reshape(1, -1, *[1] * (weight.dim() - 2))


class InputScale(LayerOption):
    """Multiplies each input channel before it is quantized.

    Packed, the multiplier is in the kernels' quantize prologue, beside the codes.

    Attributes:
        factor: (K,).
    """

    title = "a scale of input channels"
    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    @classmethod
    def moved(cls, factor: Tensor, host: Host) -> "InputScale":
        """Multiplies the weight's input channel k by ``factor[k]`` and the input by its inverse.

        A scale that the layer already has is kept and multiplied.

        Raises:
            ValueError: the factor does not fit, or is not positive and finite.
        """
        if not bool(((factor > 0) & torch.isfinite(factor)).all()):
            raise ValueError("factors of input channels must be positive and finite")
        host.move_weight(partial(scale_input, factor=factor.detach().clone()))
        inverse, before = factor.reciprocal(), host.input_factor
        return cls(inverse if before is None else before * inverse)

    def arrange(self, operand: Operand, part: Part, host: Host) -> Operand:
        """See ``LayerOption``."""
        factor = self.factor[part.start : part.stop]
        return Operand(operand.values, host.geometry.over_channels(factor))

    def state(self) -> dict[str, Tensor]:
        """See ``LayerOption``."""
        return {"in_mult": self.factor}

    @classmethod
    def load(cls, state: Mapping[str, Tensor], host: Host) -> "InputScale | None":
        """See ``LayerOption``."""
        if "in_mult" not in state:
            return None
        factor = state["in_mult"]
        if factor.shape != (host.in_channels,):
            raise BrokenModel(f"scales of input channels have shape {tuple(factor.shape)}")
        return cls(factor)
