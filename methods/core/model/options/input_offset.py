"""An offset for each input channel, subtracted before the channel is quantized (DGQ's groups).

Kernels want zero points that are codes, so a range contains zero. A channel whose values lie far
from zero would waste most of its codes. Its offset moves them to zero; what the weight makes of the
offset is the same for every token or pixel, and joins the bias. A convolution that pads has no such
constant.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.model.options.call_gains import CallGains
from quantarena.methods.core.model.options.input_scale import InputScale
from quantarena.methods.core.model.options.low_rank import LowRankBranch
from quantarena.methods.core.model.options.option import (
    Host,
    LayerOption,
    Operand,
    PackedForm,
    Product,
)
from quantarena.methods.core.model.options.patches import Patches
from quantarena.methods.core.quantizers.part import Part


class InputOffset(LayerOption):
    """Quantizes ``x - offset`` and adds the weight's product with the offset.

    Attributes:
        offset: (K,).
    """

    title = "an offset of input channels"
    excludes = (InputScale, Patches, CallGains, LowRankBranch)
    offset: Tensor

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset)

    @classmethod
    def of(cls, offset: Tensor, host: Host) -> "InputOffset":
        """The option for a layer.

        Raises:
            ValueError: another number of channels, several parts, or a layer that pads or is in
                groups.
        """
        if misfit := _misfit(offset, host):
            raise ValueError(misfit)
        return cls(offset.detach().float().contiguous())

    def arrange(self, operand: Operand, part: Part, host: Host) -> Operand:
        """See ``LayerOption``."""
        return Operand(operand.values - host.geometry.over_channels(self.offset), operand.mult)

    def around(self, product: Product, x: Tensor, host: Host) -> Product:
        """See ``LayerOption``."""

        def moved(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            added = self.added(weight)
            return product(values, weight, added if bias is None else bias + added)

        return moved

    def added(self, weight: Tensor) -> Tensor:
        """What a weight (O, K, ...) makes of the offset, (O,)."""
        return weight.flatten(2).sum(2) @ self.offset if weight.dim() > 2 else weight @ self.offset

    def state(self) -> dict[str, Tensor]:
        """See ``LayerOption``."""
        return {"in_offset": self.offset}

    @classmethod
    def load(cls, state: Mapping[str, Tensor], host: Host) -> "InputOffset | None":
        """See ``LayerOption``."""
        if "in_offset" not in state:
            return None
        if misfit := _misfit(state["in_offset"], host):
            raise BrokenModel(misfit)
        return cls(state["in_offset"])

    def lower(self, host: Host) -> PackedForm:
        """See ``LayerOption``."""
        (part,) = host.parts
        quantizer = part.weight_quantizer
        with torch.no_grad():
            added = self.added(host.weight if quantizer is None else quantizer(host.weight))
        return PackedForm("offset", {}, {"offset": self.offset, "added": added})


def _misfit(offset: Tensor, host: Host) -> str:
    """Why an offset does not fit the layer; empty where it does."""
    if offset.shape != (host.in_channels,):
        return f"offsets of input channels have shape {tuple(offset.shape)}"
    if len(host.parts) > 1 or host.geometry.groups > 1 or any(host.geometry.padding):
        return "a layer that pads, is grouped or has several parts has no offset of input channels"
    return ""
