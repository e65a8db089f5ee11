"""Groups of slices with similar bounds, which share a range (DGQ, arXiv:2501.04304).

Slices lie along one axis of an operand: its positions or its channels. Tables have one row for each
sampler call.
"""

from dataclasses import replace

import torch
from torch import Tensor

from quantarena.methods.core.affine import QuantParams, affine_params, tight_params
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.techniques.calibrate.bounds import Bounds
from quantarena.methods.techniques.calibrate.kmeans import kmeans


def spreads(bounds: Bounds) -> Tensor:
    """How much the slices' bounds differ at each call, (S,): DGQ's D.

    D is ``(max M - min M) + (max m - min m)`` over slices with maxima ``M`` and minima ``m``.
    """
    return _range(bounds.low) + _range(bounds.high)


def groups_by_call(bounds: Bounds, groups: int, seed: int) -> Tensor:
    """Group similar slices, separately at every call; group numbers, (S, slices)."""
    calls, slices = bounds.low.shape
    if slices <= groups:
        return torch.arange(slices, device=bounds.low.device).expand(calls, slices)
    return kmeans(_relative(bounds), groups, seed)


def groups_of_all(bounds: Bounds, groups: int, seed: int) -> Tensor:
    """Group slices that are similar at all calls together; group numbers without gaps, (slices,).

    Bounds are relative to the largest one of their call, so no call outweighs another.
    """
    slices = bounds.low.shape[1]
    if slices <= groups:
        return torch.arange(slices, device=bounds.low.device)
    histories = _relative(bounds).permute(1, 0, 2).flatten(1)
    ids: Tensor = torch.unique(kmeans(histories[None], groups, seed)[0], return_inverse=True)[1]
    return ids


def group_params(bounds: Bounds, ids: Tensor, bits: int, *, with_zero: bool = True) -> QuantParams:
    """Min-max range of each group at each call, (S, G), which covers all members.

    Args:
        bounds: bounds of the slices.
        ids: group number of each slice, (slices,) or (S, slices).
        bits: 1 to 8.
        with_zero: zero is in every range, as padding needs; if false, where its members have it.

    Raises:
        ValueError: a bound is not finite.
    """
    calls, slices = bounds.low.shape
    place, count = ids.to(bounds.low.device).expand(calls, slices), int(ids.max()) + 1
    # a group may have no members
    low, high = (torch.zeros(calls, count, device=bounds.low.device) for _ in range(2))
    low.scatter_reduce_(1, place, bounds.low.float(), "amin", include_self=with_zero)
    high.scatter_reduce_(1, place, bounds.high.float(), "amax", include_self=with_zero)
    if with_zero:
        return affine_params(low, high, bits, symmetric=False)
    return tight_params(low, high, bits)


def set_group_table(
    quantizer: ActQuantizer,
    axis: int | None,
    bounds: Bounds,
    ids: Tensor,
    *,
    with_zero: bool = True,
) -> None:
    """Give a quantizer min-max ranges of groups, a table of them where calls differ.

    Args:
        quantizer: the quantizer.
        axis: along which slices have groups; None gives the whole tensor a range, that of group 0.
        bounds: bounds of the slices.
        ids: group number of each slice, (slices,) or (S, slices).
        with_zero: see :func:`group_params`.
    """
    found = group_params(bounds, ids, quantizer.bits, with_zero=with_zero)
    single = len(found.scale) == 1
    if axis is None:
        scale, zero = found.scale[:, 0], found.zero_point[:, 0]
        if single:
            quantizer.set_params(replace(found, scale=scale, zero_point=zero))
        else:
            quantizer.set_bank(scale, zero)
    elif single:
        ids = ids if ids.dim() == 1 else ids[0]
        quantizer.set_groups(axis, ids, found.scale[0], found.zero_point[0])
    else:
        quantizer.set_groups(axis, ids, found.scale, found.zero_point)


def _relative(bounds: Bounds) -> Tensor:
    """Bounds as points (S, slices, 2) in float64, relative to each call's largest magnitude."""
    points = torch.stack([bounds.low, bounds.high], dim=2).double()
    return points / points.abs().amax((1, 2), keepdim=True).clamp(min=1e-300)


def _range(values: Tensor) -> Tensor:
    """Difference between the largest and the smallest value of each row, (S,)."""
    return values.amax(1) - values.amin(1)
