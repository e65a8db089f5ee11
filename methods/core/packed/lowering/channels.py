"""Lowering where every range belongs to input channels: one packed layer, or a sum of them."""

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.packed.lowering.case import Case, Ranges
from quantarena.methods.core.packed.lowering.codes import WeightCodes
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.dense import packed_leaf
from quantarena.methods.core.packed.nodes.k_groups import one_call
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.node import Node
from quantarena.methods.core.packed.nodes.weight_only import WeightOnlyLayer

MAX_CHANNEL_GROUPS = 32
"""Most groups of input channels that run as parts of their own."""


def weights_alone(case: Case) -> Node:
    """Packed codes whose float weight is made at run time."""
    codes = case.codes
    return WeightOnlyLayer(
        codes.values,
        codes.bits,
        codes.scale,
        codes.zero,
        in_mult=codes.mult,
        bias=codes.bias,
        geometry=codes.geometry,
    )


def channel_sum(case: Case) -> Node:
    """A sum over parts whose channels share an activation range and a weight scale.

    Raises:
        Unsupported: groups that differ by sampler call, too many of them, or a grouped convolution.
    """
    codes, quantizer = case.codes, case.static
    ids = quantizer.ids if case.ranges is Ranges.CHANNELS else None
    fits = codes.fits(quantizer.bits)
    if ids is None and codes.k_groups == 1 and fits:
        return packed_leaf(codes.layer(quantizer.bits, quantizer.scale, quantizer.zero_point))
    if not fits:
        refuse_long_sums(codes)
    _refuse(ids, codes.conv_groups)
    of_channel = torch.arange(codes.inputs) // (codes.inputs // codes.k_groups)
    key = of_channel if ids is None else ids.cpu() * codes.k_groups + of_channel
    order = key.argsort(stable=True)
    sizes = torch.unique(key, return_counts=True)[1].tolist()
    parts: list[IntegerLayer] = []
    runs = [
        run
        for index in torch.split(order, sizes)
        for run in fitting_runs(codes, index, int(key[index[0]]) % codes.k_groups, quantizer.bits)
    ]
    for index in runs:
        act_group, k_group = divmod(int(key[index[0]]), codes.k_groups)
        piece = codes.channels(index, k_group, bias=not parts)
        scale, zero = quantizer.scale.detach(), quantizer.zero_point.detach()
        if ids is not None:
            scale, zero = scale[..., act_group], zero[..., act_group]
        parts.append(piece.layer(quantizer.bits, scale, zero))
    if torch.equal(order, torch.arange(codes.inputs)):
        return PackedLayer(parts[0]) if len(parts) == 1 else one_call(SplitPackedLayer(parts))
    return one_call(SplitPackedLayer(parts, order=order))


def fitting_runs(codes: WeightCodes, index: Tensor, k_group: int, act_bits: int) -> list[Tensor]:
    """Input channels cut into runs whose sums provably fit the kernels' int32 accumulators.

    Args:
        codes: the codes of the part.
        index: channels of one K-group, which may be all.
        k_group: that K-group.
        act_bits: width of an activation code.

    Returns:
        Runs of the channels, in order; one run where all of them fit.

    Raises:
        Unsupported: a single channel does not fit.
    """
    if codes.channels(index, k_group, bias=False).fits(act_bits):
        return [index]
    if len(index) == 1:
        refuse_long_sums(codes)
    halves = torch.chunk(index, 2)
    return [run for half in halves for run in fitting_runs(codes, half, k_group, act_bits)]


def refuse_long_sums(codes: WeightCodes) -> None:
    """Raises ``Unsupported`` where sums that are too long for int32 cannot be cut by channels."""
    if codes.conv_groups == 1 and codes.inputs > 1:
        return
    raise Unsupported(
        f"sums of {codes.values[0].numel()} products may exceed the kernels' int32 accumulators, "
        "and cannot be cut by input channels: leave the layer in floating point"
    )


def _refuse(ids: Tensor | None, conv_groups: int) -> None:
    """Raises ``Unsupported`` where no sum of packed layers computes these groups."""
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
    if conv_groups != 1:
        raise Unsupported("channel groups of a convolution in groups have no packed form")
