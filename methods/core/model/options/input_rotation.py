"""A rotation of the input channels, undone in the weight (ViDiT-Q, QuaRot).

``x W^T = (x D R) (W D^-1 R)^T``: the input is multiplied by a factor for each channel and by an
orthogonal matrix, see ``core.rotation``, before it is quantized. Outlier channels spread over
all channels, so that no channel decides the range of a token. The factor holds the scale that the
layer had, for ViDiT-Q balances channels first and rotates them then, and random signs (QuaRot,
arXiv:2404.00456): without these, a mean that all channels share would become an outlier itself.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.float_ops import rotated
from quantarena.methods.core.model.options.call_gains import CallGains
from quantarena.methods.core.model.options.input_offset import InputOffset
from quantarena.methods.core.model.options.input_scale import InputScale, scale_input
from quantarena.methods.core.model.options.low_rank import LowRankBranch
from quantarena.methods.core.model.options.option import Host, LayerOption, Operand, PackedForm
from quantarena.methods.core.quantizers.part import Part
from quantarena.methods.core.rotation import additions, rotate


def rotated_weight(weight: Tensor, signs: Tensor) -> Tensor:
    """The weight that makes of rotated inputs what ``weight`` makes of them before, in float64.

    Args:
        weight: (O, K).
        signs: (K,) of 1 and -1.
    """
    turned = rotate(scale_input(weight.double(), signs.double())) / math.sqrt(weight.shape[1])
    return turned.to(weight)


class InputRotation(LayerOption):
    """Quantizes ``rotate(factor * x)``.

    Attributes:
        factor: (K,), none zero; the rotation's division by sqrt(K) is in it.
    """

    title = "a rotation of input channels"
    excludes = (InputScale, InputOffset, CallGains, LowRankBranch)
    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    @classmethod
    def of(cls, signs: Tensor, host: Host) -> "InputRotation":
        """The option for a layer, whose scale of input channels it takes over.

        Raises:
            ValueError: a layer that is not linear or has several parts, or signs that do not fit.
        """
        if misfit := _misfit(signs, host):
            raise ValueError(misfit)
        if not bool((signs.abs() == 1).all()):
            raise ValueError("signs of rotated input channels must be 1 or -1")
        scale = host.input_factor
        factor = signs.to(host.weight) / math.sqrt(host.in_channels)
        return cls(factor if scale is None else factor * scale)

    def applied(self, x: Tensor) -> Tensor:
        """The input (..., K) as it is quantized."""
        return rotated(native.library(), x, self.factor)

    def arrange(self, operand: Operand, part: Part, host: Host) -> Operand:
        """See ``LayerOption``."""
        return Operand(self.applied(operand.values), operand.mult)

    def state(self) -> dict[str, Tensor]:
        """See ``LayerOption``."""
        return {"in_rotation": self.factor}

    @classmethod
    def load(cls, state: Mapping[str, Tensor], host: Host) -> "InputRotation | None":
        """See ``LayerOption``."""
        if "in_rotation" not in state:
            return None
        factor = state["in_rotation"]
        if misfit := _misfit(factor, host):
            raise BrokenModel(misfit)
        return cls(factor)

    def lower(self, host: Host) -> PackedForm:
        """See ``LayerOption``."""
        return PackedForm("rotation", {}, {"factor": self.factor})

    def float_macs(self, macs: float, positions: float) -> float:
        """See ``LayerOption``; an addition counts as much as a multiply-accumulate."""
        return positions * additions(len(self.factor))


def _misfit(factor: Tensor, host: Host) -> str:
    """Why a rotation does not fit the layer; empty where it does."""
    if host.geometry.is_conv or len(host.parts) > 1:
        kind = "a convolution" if host.geometry.is_conv else f"a layer of {len(host.parts)} parts"
        return f"{kind} has no rotation of input channels: only linear layers of one part have"
    if factor.shape != (host.in_channels,):
        return f"factors of rotated input channels have shape {tuple(factor.shape)}"
    if not bool((torch.isfinite(factor) & (factor != 0)).all()):
        return "factors of rotated input channels must be finite and not zero"
    return ""
