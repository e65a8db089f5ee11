"""The frozen weight codes of one part, in the form that the kernels take."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.kernels.formats import IntegerLayer, sums_fit
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.quantizers.layer_geometry import as_image_weight
from quantarena.methods.core.quantizers.part import Part


@dataclass(frozen=True, slots=True, eq=False)
class WeightCodes:
    """Frozen weight codes of one width.

    Attributes:
        values: int8 in the offset domain, (O, K) or (O, K / groups, h, w).
        bits: width of a code.
        scale: (O, G), one for each K-group.
        zero: (O, G) int32, in the offset domain.
        mult: (K,), or None.
        bias: (O,), or None.
        geometry: stride, padding, dilation and groups of a convolution; empty for a linear layer.
    """

    values: Tensor
    bits: int
    scale: Tensor
    zero: Tensor
    mult: Tensor | None
    bias: Tensor | None
    geometry: dict[str, Any]

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return int(self.values.shape[1] * self.conv_groups)

    @property
    def conv_groups(self) -> int:
        """Channel groups of a convolution; 1 for a linear layer."""
        return int(self.geometry.get("groups", 1))

    @property
    def k_groups(self) -> int:
        """Groups of input channels with a weight scale of their own."""
        return self.scale.shape[1]

    def fits(self, act_bits: int, far: int = 0) -> bool:
        """Whether the sums of every K-group provably fit the kernels' int32 accumulators.

        Args:
            act_bits: width of an activation code.
            far: how far beyond the codes zero points of activations lie.
        """
        width = self.values.shape[1] // self.k_groups
        pieces = torch.split(self.values, width, dim=1)
        return all(
            sums_fit(piece, self.zero[:, group], act_bits, far)
            for group, piece in enumerate(pieces)
        )

    def rows(self, index: Tensor, bits: int) -> "WeightCodes":
        """Some output channels, whose codes have another width."""
        shift = 2 ** (self.bits - 1) - 2 ** (bits - 1)
        return replace(
            self,
            values=(self.values[index].to(torch.int16) + shift).to(torch.int8),
            bits=bits,
            scale=self.scale[index],
            zero=self.zero[index] + shift,
            bias=None if self.bias is None else self.bias[index],
        )

    def channels(self, index: Tensor, k_group: int, *, bias: bool) -> "WeightCodes":
        """Some input channels of one K-group."""
        column = slice(k_group, k_group + 1)
        return replace(
            self,
            values=self.values[:, index],
            scale=self.scale[:, column],
            zero=self.zero[:, column],
            mult=None if self.mult is None else self.mult[index],
            bias=self.bias if bias else None,
        )

    def layer(self, bits: int, scale: Tensor, zero: Tensor) -> IntegerLayer:
        """The integer layer with this activation quantizer; the codes must be of one K-group.

        Args:
            bits: width of an activation code.
            scale: () one scale, or (S,) a bank by sampler call.
            zero: zero points, same shape.
        """
        return IntegerLayer(
            kind="conv2d" if self.values.dim() == 4 else "linear",
            weight_codes=self.values,
            weight_bits=self.bits,
            weight_scale=self.scale[:, 0],
            weight_zero=self.zero[:, 0],
            act_bits=bits,
            act_scale=scale.detach(),
            act_zero=zero.detach().to(torch.int32),
            in_mult=self.mult,
            bias=self.bias,
            **self.geometry,
        )


def weight_codes(layer: QuantLayer, part: Part) -> WeightCodes:
    """The frozen codes of one part; a 1-d convolution's as an image of height 1.

    The first part has the layer's bias, unless an option adds it.

    Raises:
        Unsupported: the weight is in floating point.
        ValueError: weight codes are not frozen.
    """
    quantizer = part.weight_quantizer
    if quantizer is None:
        raise Unsupported("a float weight with quantized input has no packed form: quantize both")
    if quantizer.codes is None:
        raise ValueError("only a layer with frozen weight codes packs")
    geometry: dict[str, Any] = layer.geometry.as_image()
    if layer.is_conv:
        geometry = {**geometry, "groups": layer.groups}
    rows, offset = quantizer.codes.shape[0], 2 ** (quantizer.bits - 1)
    scale = quantizer.scale.detach()
    scale = scale.reshape(scale.shape[0] if scale.dim() else 1, -1)
    zero = (quantizer.zero_point.detach() - offset).reshape(scale.shape).to(torch.int32)
    factor = layer.input_factor
    holds_bias = part is layer.parts[0] and not any(o.adds_bias for o in layer.options)
    return WeightCodes(
        values=as_image_weight((quantizer.codes.to(torch.int16) - offset).to(torch.int8)),
        bits=quantizer.bits,
        scale=scale.expand(rows, -1),
        zero=zero.expand(rows, -1),
        mult=None if factor is None else factor[part.start : part.stop],
        bias=layer.bias if holds_bias else None,
        geometry=geometry,
    )
