"""The quantized layer: a convolution or linear whose weights and inputs go through quantizers.

A layer has one part, or one part for each half of a concatenated input (Q-Diffusion's split
shortcut). A part owns a channel range with its own weight and activation quantizer, and packs to
one integer layer; the layer's output is the sum of its parts plus the bias.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantarena.methods.core.bits import FP_WIDTH, Bits
from quantarena.methods.core.graph import QuantizableModule
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.quantizer import (
    QuantParams,
    dequantize,
    fake_quantize_ste,
    quantize,
)
from quantarena.methods.core.ranges import RangeSearch
from quantarena.methods.core.rounding import SoftRounding


class WeightQuantizer(nn.Module):
    """Codes of one part's weight, per output channel.

    Three states: ranges set (nearest rounding), soft (AdaRound decides up or down), and frozen
    (codes fixed, which is what packs).
    """

    scale: Tensor
    zero_point: Tensor
    codes: Tensor | None

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.soft: SoftRounding | None = None
        self._value: Tensor | None = None  # what frozen codes stand for, computed once
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0))
        self.register_buffer("codes", None)

    @property
    def params(self) -> QuantParams:
        """Scale and zero point, shaped over the weight."""
        return QuantParams(self.scale, self.zero_point, self.bits)

    def set_params(self, params: QuantParams) -> None:
        """Take a range; forgets rounding and codes made under another."""
        self.scale, self.zero_point = params.scale.detach(), params.zero_point.detach()
        self.soft, self.codes, self._value = None, None, None

    def set_codes(self, codes: Tensor) -> None:
        """Fix the codes, uint8 in the weight's shape."""
        self.codes, self.soft, self._value = codes.to(torch.uint8), None, None

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the codes stand for."""
        if self.codes is not None:
            if self._value is None:
                self._value = dequantize(self.codes.float(), self.params)
            return self._value
        if self.soft is not None:
            return self.soft.weight()
        return dequantize(quantize(weight, self.params), self.params)

    def soften(self, weight: Tensor) -> SoftRounding:
        """Start AdaRound on this weight."""
        self.soft = SoftRounding(weight.detach(), self.params)
        return self.soft

    @torch.no_grad()
    def freeze(self, weight: Tensor) -> None:
        """Fix the codes: hard rounding where soft, nearest otherwise."""
        if self.codes is not None:
            return
        if self.soft is None:
            self.set_codes(quantize(weight, self.params))
        else:
            floor = torch.floor(weight * self.scale.reciprocal()) + self.soft.up()
            self.set_codes((floor + self.zero_point).clamp(0, self.params.levels - 1))


class ActQuantizer(nn.Module):
    """Static per-tensor quantizer of a layer's input; its scale can learn (LSQ)."""

    zero_point: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.scale = nn.Parameter(torch.empty(0), requires_grad=False)
        self.register_buffer("zero_point", torch.empty(0))

    @property
    def params(self) -> QuantParams:
        """Scale and zero point, scalars."""
        return QuantParams(self.scale, self.zero_point, self.bits)

    def set_params(self, params: QuantParams) -> None:
        """Take a range found by a search."""
        self.scale = nn.Parameter(params.scale.detach().reshape(()), requires_grad=False)
        self.zero_point = params.zero_point.detach().reshape(())

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``, any shape; differentiable in ``x`` and the scale."""
        return fake_quantize_ste(x, self.params)


class Part(nn.Module):
    """A range of input channels with its own quantizers; None leaves a side in floating point."""

    def __init__(self, start: int, stop: int, bits: Bits) -> None:
        super().__init__()
        self.start, self.stop = start, stop
        self.weight_quantizer = None if bits.weight == FP_WIDTH else WeightQuantizer(bits.weight)
        self.act_quantizer = None if bits.act == FP_WIDTH else ActQuantizer(bits.act)


class QuantLayer(nn.Module):
    """A Conv2d or Linear with quantizers in front of its weight and input.

    Args:
        module: the full-precision layer; its tensors are shared, not copied.
        bits: widths of every part.
        splits: widths of the input-channel parts, summing to the input channels; empty for one.
    """

    def __init__(self, module: QuantizableModule, bits: Bits, splits: Sequence[int] = ()) -> None:
        super().__init__()
        self.bits = bits
        self.weight = nn.Parameter(module.weight.detach(), requires_grad=False)
        self.bias = (
            None if module.bias is None else nn.Parameter(module.bias.detach(), requires_grad=False)
        )
        self.is_conv = isinstance(module, nn.Conv2d)
        if isinstance(module, nn.Conv2d):
            if isinstance(module.padding, str) or module.padding_mode != "zeros":
                raise ValueError("only convolutions with numeric zero padding can be quantized")
            self.stride, self.padding = module.stride, module.padding
            self.dilation, self.groups = module.dilation, module.groups
            self.in_channels = module.in_channels
        else:
            self.in_channels = module.in_features
        widths = tuple(splits) or (self.in_channels,)
        if sum(widths) != self.in_channels:
            raise ValueError(f"splits {widths} do not sum to {self.in_channels} input channels")
        edges = [0]
        for width in widths:
            edges.append(edges[-1] + width)
        self.parts = nn.ModuleList(Part(a, b, bits) for a, b in pairwise(edges))
        self.use_weight_quantizer = True
        self.use_act_quantizer = True

    def part_list(self) -> list[Part]:
        """The parts, typed."""
        return [part for part in self.parts if isinstance(part, Part)]

    def part_weight(self, part: Part) -> Tensor:
        """That part's slice of the full-precision weight."""
        if len(self.parts) == 1:
            return self.weight
        return self.weight[:, part.start : part.stop]

    def part_input(self, part: Part, x: Tensor) -> Tensor:
        """That part's slice of the layer's input."""
        if len(self.parts) == 1:
            return x
        return x[:, part.start : part.stop] if self.is_conv else x[..., part.start : part.stop]

    def set_weight_ranges(self, search: RangeSearch, *, symmetric: bool) -> None:
        """Find per-output-channel ranges of every part's weight."""
        for part in self.part_list():
            if part.weight_quantizer is not None:
                found = search(
                    self.part_weight(part), part.weight_quantizer.bits, axis=0, symmetric=symmetric
                )
                part.weight_quantizer.set_params(found)

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the parts plus bias; shapes as the full-precision layer."""
        result: Tensor | None = None
        for index, part in enumerate(self.part_list()):
            piece, weight = self.part_input(part, x), self.part_weight(part)
            if part.act_quantizer is not None and self.use_act_quantizer:
                piece = part.act_quantizer(piece)
            if part.weight_quantizer is not None and self.use_weight_quantizer:
                weight = part.weight_quantizer(weight)
            term = self._affine(piece, weight, self.bias if index == 0 else None)
            result = term if result is None else result + term
        assert result is not None
        return result

    def _affine(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.is_conv:
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return F.linear(x, weight, bias)

    def freeze(self) -> None:
        """Fix all weight codes."""
        for part in self.part_list():
            if part.weight_quantizer is not None:
                part.weight_quantizer.freeze(self.part_weight(part))

    def integer_layers(self) -> list[IntegerLayer]:
        """One integer layer a part, bias in the first.

        Raises:
            ValueError: a side is in floating point, or the codes are not frozen.
        """
        found = []
        geometry: dict[str, Any] = {}
        if self.is_conv:
            geometry = {"stride": self.stride, "padding": self.padding}
            geometry |= {"dilation": self.dilation, "groups": self.groups}
        for index, part in enumerate(self.part_list()):
            wq, aq = part.weight_quantizer, part.act_quantizer
            if wq is None or aq is None or wq.codes is None:
                raise ValueError("only a layer with frozen weight codes and quantized input packs")
            offset = 2 ** (wq.bits - 1)
            rows = self.weight.shape[0]
            found.append(
                IntegerLayer(
                    kind="conv2d" if self.is_conv else "linear",
                    weight_codes=(wq.codes.to(torch.int16) - offset).to(torch.int8),
                    weight_bits=wq.bits,
                    weight_scale=wq.scale.detach().reshape(-1).expand(rows).contiguous(),
                    weight_zero=(wq.zero_point.reshape(-1).expand(rows) - offset).to(torch.int32),
                    act_bits=aq.bits,
                    act_scale=aq.scale.detach().reshape(()),
                    act_zero=aq.zero_point.to(torch.int32).reshape(()),
                    bias=self.bias if index == 0 else None,
                    **geometry,
                )
            )
        return found
