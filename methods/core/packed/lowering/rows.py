"""Lowering where ranges differ by token, pixel, patch or image: integers scaled back afterwards."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.packed.lowering.case import Case
from quantarena.methods.core.packed.lowering.channels import fitting_runs, refuse_long_sums
from quantarena.methods.core.packed.lowering.codes import WeightCodes
from quantarena.methods.core.packed.nodes.dense import packed_leaf
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.node import Node
from quantarena.methods.core.packed.nodes.patches import PatchLayer
from quantarena.methods.core.packed.nodes.row_ranges import RowScaledLayer, SampleScaledLayer
from quantarena.methods.core.packed.nodes.wrappers import PointwiseLayer
from quantarena.methods.core.quantizers.activation import ActQuantizer, DynamicActQuantizer
from quantarena.methods.core.quantizers.patches import tap_rows, weight_rows


def token_rows(case: Case) -> Node:
    """A linear layer whose tokens have ranges of their own."""
    assert case.quantizer is not None
    return _rows(case.codes, case.quantizer)


def patch_rows(case: Case) -> Node:
    """A convolution whose output pixels have ranges of their own.

    Raises:
        Unsupported: ranges within a patch, or K-groups of the weight.
    """
    quantizer, codes = case.quantizer, case.codes
    assert quantizer is not None
    by_row = isinstance(quantizer, DynamicActQuantizer) or quantizer.axis in (1, -2)
    if not by_row or codes.k_groups > 1:
        raise Unsupported("patches pack with ranges by row and one weight scale an output")
    window = case.layer.window
    mult = None if codes.mult is None else tap_rows(codes.mult, window)
    flat = replace(codes, values=weight_rows(codes.values), mult=mult, geometry={})
    return PatchLayer(_rows(flat, quantizer), window)


def pixel_rows(case: Case) -> Node:
    """A 1x1 convolution whose rows or columns of pixels have ranges of their own.

    Raises:
        Unsupported: a kernel that mixes pixels in one sum, padding, or a grouped convolution.
    """
    layer, quantizer, codes = case.layer, case.static, case.codes
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


def image_samples(case: Case) -> Node:
    """A convolution whose images get their ranges when they arrive.

    Raises:
        Unsupported: a 1-d convolution, channel groups, or K-groups of a grouped convolution.
    """
    quantizer, codes = case.dynamic, case.codes
    if case.layer.spatial == 1:
        raise Unsupported("dynamic ranges of a 1-d convolution have no packed form: make it static")
    if quantizer.group_size:
        raise Unsupported("dynamic channel groups of a convolution have no packed form")
    if codes.k_groups > 1 and codes.conv_groups != 1:
        raise Unsupported("K-groups of a convolution in groups have no packed form")
    zero = torch.arange(2**quantizer.bits)
    if quantizer.symmetric and quantizer.bits > 1:
        zero = torch.tensor(2 ** (quantizer.bits - 1))
    plain = replace(codes, mult=None, bias=None)
    pieces = [plain]
    if not codes.fits(quantizer.bits):
        refuse_long_sums(codes)
    if codes.conv_groups == 1:
        pieces = [
            plain.channels(run, g, bias=False)
            for g, index in enumerate(torch.arange(codes.inputs).chunk(codes.k_groups))
            for run in fitting_runs(plain, index, g, quantizer.bits)
        ]
    leaves = [packed_leaf(p.layer(quantizer.bits, torch.ones(zero.shape), zero)) for p in pieces]
    return SampleScaledLayer(leaves, quantizer, codes.mult, codes.bias)


def beyond_codes(quantizer: ActQuantizer | DynamicActQuantizer) -> int:
    """How far a static quantizer's zero points lie beyond its codes, 0 where they are codes."""
    if isinstance(quantizer, DynamicActQuantizer):
        return 0
    low, high = quantizer.zero_point.detach().aminmax()
    return max(0, -int(low), int(high) - ((1 << quantizer.bits) - 1))


def _rows(codes: WeightCodes, quantizer: ActQuantizer | DynamicActQuantizer) -> RowScaledLayer:
    """A linear layer over rows, K-groups as groups of a 1x1 convolution.

    Sums that are too long for int32 are cut into more, equal groups.
    """
    inputs = codes.values.shape[1]
    width = inputs // codes.k_groups
    if isinstance(quantizer, DynamicActQuantizer) and quantizer.group_size:
        if inputs % quantizer.group_size:
            raise ValueError(f"groups of {quantizer.group_size} do not divide {inputs} channels")
        width = math.gcd(width, quantizer.group_size)
    # groups add up in floating point, so that there may be more of them
    several = (_grouped(codes, inputs // width * n) for n in range(1, width + 1) if width % n == 0)
    far = beyond_codes(quantizer)
    wide = next(grouped for grouped in several if grouped.fits(quantizer.bits, far))
    leaf = PackedLayer(wide.layer(quantizer.bits, torch.tensor(1.0), torch.tensor(0)))
    return RowScaledLayer(leaf, quantizer, codes.mult, codes.bias)


def _grouped(codes: WeightCodes, groups: int) -> WeightCodes:
    """A linear layer's codes as a 1x1 convolution in that many groups, a multiple of K-groups."""
    outputs, inputs = codes.values.shape
    width = inputs // groups

    def spread(value: Tensor) -> Tensor:
        return value.repeat_interleave(groups // codes.k_groups, dim=1).t().reshape(-1, 1)

    grouped = codes.values.reshape(outputs, groups, width).transpose(0, 1)
    return WeightCodes(
        values=grouped.reshape(groups * outputs, width, 1, 1),
        bits=codes.bits,
        scale=spread(codes.scale),
        zero=spread(codes.zero),
        mult=None,
        bias=None,
        geometry={"groups": groups},
    )
