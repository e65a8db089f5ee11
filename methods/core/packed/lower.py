"""From a quantized layer to integers: every option has its packed form, or is refused by name.

| option | packed form |
|---|---|
| input splits, channel groups, K-groups of weights | a sum over ranges of input channels |
| banks by sampler call | the kernels' tables, indexed by the clock |
| input multipliers | the kernels' quantize prologue |
| bit map | one node a width, outputs put back in order |
| token groups, dynamic ranges of tokens | codes in torch, integer product, scales by row |
| groups of a convolution's patches | the same over one row for each output pixel |
| dynamic ranges of images | samples by zero point |
| weight-only | packed codes, float weight made at run time |
| gains by sampler call | onto input and output of a weight-only layer |
| low-rank branch, excluded tokens | nodes in floating point around the rest |
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.model.layer import Part, QuantLayer
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.gains import ExpertLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.node import Node
from quantarena.methods.core.packed.nodes.patches import PatchLayer
from quantarena.methods.core.packed.nodes.row_ranges import RowScaledLayer, SampleScaledLayer
from quantarena.methods.core.packed.nodes.weight_only import WeightOnlyLayer
from quantarena.methods.core.packed.nodes.wrappers import (
    Conv1dLayer,
    FloatTokensLayer,
    LowRankLayer,
    MixedWidthLayer,
    PointwiseLayer,
)
from quantarena.methods.core.quantizers.activation import ActQuantizer, DynamicActQuantizer
from quantarena.methods.core.quantizers.patches import tap_rows, weight_rows

MAX_CHANNEL_GROUPS = 32
"""Most groups of input channels that run as parts of their own."""


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Frozen weight codes of one width, as the kernels take them.

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
        return int(self.values.shape[1] * self.geometry.get("groups", 1))

    def rows(self, index: Tensor, bits: int) -> "Codes":
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

    def channels(self, index: Tensor, group: int, *, bias: bool) -> "Codes":
        """Some input channels of one K-group."""
        column = slice(group, group + 1)
        return replace(
            self,
            values=self.values[:, index],
            scale=self.scale[:, column],
            zero=self.zero[:, column],
            mult=None if self.mult is None else self.mult[index],
            bias=self.bias if bias else None,
        )

    def layer(self, bits: int, scale: Tensor, zero: Tensor) -> IntegerLayer:
        """With an activation quantizer, (), or (S,) a bank; needs a single K-group."""
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


def pack_layer(layer: QuantLayer) -> Node:
    """A layer's packed form, on its own model's clock.

    Raises:
        Unsupported: an option or a combination that has no integer form; it says which.
        ValueError: weight codes are not frozen, or ranges were never found.
    """
    codes = [part_codes(layer, index) for index in range(len(layer.parts))]
    nodes = [_part(layer, p, c) for p, c in zip(layer.part_list(), codes, strict=True)]
    node = nodes[0] if len(nodes) == 1 else SplitPackedLayer(nodes)
    if layer.low_down is not None and layer.low_up is not None:
        down = _image(_scaled(layer, layer.low_down))
        node = LowRankLayer(node, down, layer.low_up, _strides(layer))
    if layer.excluded:
        weight = None
        if layer.token_outputs is None:
            weight = layer.weight.detach()
            if layer.low_down is not None and layer.low_up is not None:
                weight = weight + layer.low_up @ layer.low_down
            weight = _scaled(layer, weight)
        bias = None if weight is None else layer.bias
        node = FloatTokensLayer(
            node, layer.excluded, outputs=layer.token_outputs, weight=weight, bias=bias
        )
    if layer.experts is not None:
        of_call = layer.experts.of_call
        node = ExpertLayer(node, *layer.experts.gains(), of_call, bias=layer.bias)
    if layer.spatial == 1:
        node = Conv1dLayer(node)
    node.set_clock(layer.clock)
    return node


def integer_layers(layer: QuantLayer) -> list[IntegerLayer]:
    """One integer layer a part, bias in the first, where static ranges are all that it has.

    Raises:
        ValueError: a side is in floating point, or the codes are not frozen.
    """
    found = []
    for index, part in enumerate(layer.part_list()):
        aq = part.static
        if aq is None or part.weight_quantizer is None:
            raise ValueError("only a layer with frozen weight codes and quantized input packs")
        found.append(part_codes(layer, index).layer(aq.bits, aq.scale, aq.zero_point))
    return found


def part_codes(layer: QuantLayer, index: int) -> Codes:
    """The frozen codes of one part; a 1-d convolution's as an image of height 1.

    Raises:
        Unsupported: the weight is in floating point.
        ValueError: weight codes are not frozen.
    """
    part = layer.part_list()[index]
    wq = part.weight_quantizer
    if wq is None:
        raise Unsupported("a float weight with quantized input has no packed form: quantize both")
    if wq.codes is None:
        raise ValueError("only a layer with frozen weight codes packs")
    geometry: dict[str, Any] = _strides(layer)
    if layer.is_conv:
        geometry["groups"] = layer.groups
    rows, offset = wq.codes.shape[0], 2 ** (wq.bits - 1)
    scale = wq.scale.detach().reshape(wq.scale.shape[0] if wq.scale.dim() else 1, -1)
    zero = (wq.zero_point.detach() - offset).reshape(scale.shape).to(torch.int32)
    return Codes(
        values=_image((wq.codes.to(torch.int16) - offset).to(torch.int8)),
        bits=wq.bits,
        scale=scale.expand(rows, -1),
        zero=zero.expand(rows, -1),
        mult=None if layer.in_mult is None else layer.in_mult[part.start : part.stop],
        bias=layer.bias if index == 0 and layer.experts is None else None,
        geometry=geometry,
    )


def _strides(layer: QuantLayer) -> dict[str, tuple[int, ...]]:
    """Stride, padding and dilation in two directions; empty for a linear layer."""
    if not layer.is_conv:
        return {}
    idle = (1, 0, 1) if layer.spatial == 1 else ()  # along the height that was put in
    names = ("stride", "padding", "dilation")
    found = {name: tuple(int(v) for v in getattr(layer, name)) for name in names}
    return {n: (idle[i], *found[n]) if idle else found[n] for i, n in enumerate(names)}


def _image(weight: Tensor) -> Tensor:
    """A 1-d convolution's weight with a height of 1."""
    return weight.unsqueeze(2) if weight.dim() == 3 else weight


def _scaled(layer: QuantLayer, weight: Tensor) -> Tensor:
    """A float weight that reads the input as it comes, before multipliers."""
    if layer.in_mult is None:
        return weight
    return weight * layer.in_mult.reshape(-1, *[1] * layer.spatial)


def _part(layer: QuantLayer, part: Part, codes: Codes) -> Node:
    wq = part.weight_quantizer
    assert wq is not None
    if wq.bit_map is None or len(torch.unique(wq.bit_map)) == 1:
        return _one_width(layer, part, codes)
    if layer.groups != 1:
        raise Unsupported(f"a bit map of a convolution in {layer.groups} groups has no packed form")
    widths = torch.unique(wq.bit_map).tolist()
    rows = [(wq.bit_map == width).nonzero().flatten() for width in widths]
    nodes = [
        _one_width(layer, part, codes.rows(index, width))
        for index, width in zip(rows, widths, strict=True)
    ]
    return MixedWidthLayer(nodes, torch.cat(rows).argsort())


def _one_width(layer: QuantLayer, part: Part, codes: Codes) -> Node:
    quantizer = part.act_quantizer
    if quantizer is None:
        return WeightOnlyLayer(
            codes.values,
            codes.bits,
            codes.scale,
            codes.zero,
            in_mult=codes.mult,
            bias=codes.bias,
            geometry=codes.geometry,
        )
    if layer.patches and (isinstance(quantizer, DynamicActQuantizer) or quantizer.axis is not None):
        return _patches(layer, quantizer, codes)
    if isinstance(quantizer, DynamicActQuantizer):
        return _dynamic(layer, quantizer, codes)
    if quantizer.axis is None:
        return _sum(codes, quantizer, None)
    if quantizer.axis in ((1, 1 - 2 - layer.spatial) if layer.is_conv else (-1,)):
        return _sum(codes, quantizer, quantizer.ids)
    if not layer.is_conv:
        return _rows(codes, quantizer)
    return _pixels(layer, quantizer, codes)


def _sum(codes: Codes, quantizer: ActQuantizer, ids: Tensor | None) -> Node:
    """Parts whose channels share both an activation range and a weight scale."""
    if ids is not None and ids.dim() == 2:
        raise Unsupported(
            "groups of input channels that differ by sampler call have no packed form: weights are "
            "sorted once"
        )
    count = 1 if ids is None else len(torch.unique(ids))
    if count > MAX_CHANNEL_GROUPS:
        raise Unsupported(
            f"{count} groups of input channels are more than the {MAX_CHANNEL_GROUPS} that run as "
            "parts of their own: fold them into the weights"
        )
    groups = codes.scale.shape[1]
    if ids is None and groups == 1:
        return PackedLayer(codes.layer(quantizer.bits, quantizer.scale, quantizer.zero_point))
    if codes.geometry.get("groups", 1) != 1:
        raise Unsupported("channel groups of a convolution in groups have no packed form")
    weight_group = torch.arange(codes.inputs) // (codes.inputs // groups)
    key = weight_group if ids is None else ids.cpu() * groups + weight_group
    order = key.argsort(stable=True)
    sizes = torch.unique(key, return_counts=True)[1].tolist()
    parts: list[IntegerLayer] = []
    for index in torch.split(order, sizes):
        found = int(key[index[0]])
        piece = codes.channels(index, found % groups, bias=not parts)
        scale, zero = quantizer.scale.detach(), quantizer.zero_point.detach()
        if ids is not None:
            scale, zero = scale[..., found // groups], zero[..., found // groups]
        parts.append(piece.layer(quantizer.bits, scale, zero))
    if torch.equal(order, torch.arange(codes.inputs)):
        return PackedLayer(parts[0]) if len(parts) == 1 else SplitPackedLayer(parts)
    return SplitPackedLayer(parts, order=order)


def _dynamic(layer: QuantLayer, quantizer: DynamicActQuantizer, codes: Codes) -> Node:
    if not layer.is_conv:
        return _rows(codes, quantizer)
    if layer.spatial == 1:
        raise Unsupported("dynamic ranges of a 1-d convolution have no packed form: make it static")
    if quantizer.group:
        raise Unsupported("dynamic channel groups of a convolution have no packed form")
    groups = codes.scale.shape[1]
    if groups > 1 and layer.groups != 1:
        raise Unsupported("K-groups of a convolution in groups have no packed form")
    zero = torch.arange(2**quantizer.bits)
    if quantizer.symmetric and quantizer.bits > 1:
        zero = torch.tensor(2 ** (quantizer.bits - 1))
    plain = replace(codes, mult=None, bias=None)
    pieces = [plain]
    if groups > 1:
        indices = torch.arange(codes.inputs).chunk(groups)
        pieces = [plain.channels(index, g, bias=False) for g, index in enumerate(indices)]
    leaves = [PackedLayer(p.layer(quantizer.bits, torch.ones(zero.shape), zero)) for p in pieces]
    return SampleScaledLayer(leaves, quantizer, codes.mult, codes.bias)


def _rows(codes: Codes, quantizer: ActQuantizer | DynamicActQuantizer) -> RowScaledLayer:
    """A linear layer over rows, K-groups as groups of a 1x1 convolution."""
    outputs, inputs = codes.values.shape
    weight_groups = codes.scale.shape[1]
    width = inputs // weight_groups
    if isinstance(quantizer, DynamicActQuantizer) and quantizer.group:
        if inputs % quantizer.group:
            raise ValueError(f"groups of {quantizer.group} do not divide {inputs} channels")
        width = math.gcd(width, quantizer.group)
    groups = inputs // width

    def spread(value: Tensor) -> Tensor:
        return value.repeat_interleave(groups // weight_groups, dim=1).t().reshape(-1, 1)

    grouped = codes.values.reshape(outputs, groups, width).transpose(0, 1)
    wide = Codes(
        values=grouped.reshape(groups * outputs, width, 1, 1),
        bits=codes.bits,
        scale=spread(codes.scale),
        zero=spread(codes.zero),
        mult=None,
        bias=None,
        geometry={"groups": groups},
    )
    leaf = PackedLayer(wide.layer(quantizer.bits, torch.tensor(1.0), torch.tensor(0)))
    return RowScaledLayer(leaf, quantizer, codes.mult, codes.bias)


def _pixels(layer: QuantLayer, quantizer: ActQuantizer, codes: Codes) -> Node:
    """Groups of rows or columns of an image: integers only where no kernel mixes them."""
    axis = quantizer.axis
    assert axis is not None
    plain = set(codes.geometry["padding"]) == {0} and codes.values.shape[2:] == (1, 1)
    if not plain or layer.groups != 1:
        raise Unsupported(
            f"groups of pixels along axis {axis} of a convolution with a kernel mix scales in one "
            "sum: use channel groups, or patches"
        )
    axis = axis if axis > 0 else axis + layer.spatial + 2  # of the layer's own input
    stride = codes.geometry["stride"]
    place = axis if layer.spatial == 1 else axis - 1  # in (batch, height, width, channels)
    along = stride[1] if layer.spatial == 1 else stride[axis - 2]
    assert quantizer.ids is not None
    over = ActQuantizer(quantizer.bits)
    over.set_groups(place, quantizer.ids[..., ::along], quantizer.scale, quantizer.zero_point)
    flat = replace(codes, values=codes.values.flatten(1), geometry={})
    return PointwiseLayer(_rows(flat, over), stride)


def _patches(
    layer: QuantLayer, quantizer: ActQuantizer | DynamicActQuantizer, codes: Codes
) -> PatchLayer:
    """Ranges by output pixel of a convolution."""
    by_row = isinstance(quantizer, DynamicActQuantizer) or quantizer.axis in (1, -2)
    if not by_row or codes.scale.shape[1] > 1:
        raise Unsupported("patches pack with ranges by row and one weight scale an output")
    window = layer.window
    mult = None if codes.mult is None else tap_rows(codes.mult, window)
    flat = replace(codes, values=weight_rows(codes.values), mult=mult, geometry={})
    return PatchLayer(_rows(flat, quantizer), window)
