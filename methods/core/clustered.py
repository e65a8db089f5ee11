"""Clustered groups: slices along one axis that have similar bounds share a range.

Source: DGQ (arXiv:2501.04304), where slices are channels or tokens, and k-means on their
(min, max) finds the few that hold outliers. Unlike there, every range is widened to contain zero,
because the zero point of a packed layer must be a code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.candidates import as_rows
from quantarena.methods.core.kmeans import kmeans
from quantarena.methods.core.quantizer import QuantParams, affine_params


@dataclass(frozen=True, slots=True)
class ClusteredParams:
    """Which slice is in which group, and the groups' parameters.

    Attributes:
        ids: (slices,) int64, group of each slice; groups are ordered by their range's width.
        groups: parameters of shape (groups,).
        shape: in which ``ids`` broadcasts over the tensor: 1 but along the clustered axis.
    """

    ids: Tensor
    groups: QuantParams
    shape: tuple[int, ...]

    def params(self) -> QuantParams:
        """Parameters of each slice's group, which broadcast over the tensor."""
        scale, zero_point = self.groups.scale[self.ids], self.groups.zero_point[self.ids]
        return QuantParams(
            scale.reshape(self.shape), zero_point.reshape(self.shape), self.groups.bits
        )


def slice_bounds(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every slice along ``axis``, each (x.shape[axis],)."""
    rows, _ = as_rows(x, axis)
    low, high = rows.aminmax(dim=1)
    return low, high


def spread_axis(x: Tensor) -> int:
    """The one of the last two axes whose slices' bounds differ more, as -1 or -2 (ties: -2).

    The difference is ``(max M - min M) + (max m - min m)`` over slices with maxima ``M`` and
    minima ``m``, as in DGQ.
    """
    spread = {}
    for axis in (-2, -1):
        bounds = slice_bounds(x, axis)
        spread[axis] = sum(float(bound.max()) - float(bound.min()) for bound in bounds)
    return -1 if spread[-1] > spread[-2] else -2


def cluster_bounds(
    low: Tensor, high: Tensor, bits: int, groups: int, *, symmetric: bool = False, seed: int = 0
) -> tuple[Tensor, QuantParams]:
    """Group slices by their bounds, which may be gathered over many batches.

    Args:
        low: (slices,) smallest values.
        high: (slices,) largest values.
        bits: 1 to 8.
        groups: most groups; there are fewer where bounds have fewer distinct values.
        symmetric: of each group's grid.
        seed: of the starting centres; equal seeds give equal groups.

    Returns:
        Group of each slice, (slices,), and the groups' parameters, each covering all its members.

    Raises:
        ValueError: no slices, NaN or infinity, or ``groups`` below 1.
    """
    if groups < 1:
        raise ValueError(f"cannot make {groups} groups")
    if low.numel() == 0:
        raise ValueError("cannot find a range: the tensor is empty")
    affine_params(low, high, bits, symmetric)  # refuses what is not finite, by name
    device, (low, high) = low.device, (low.float().cpu(), high.float().cpu())
    points, inverse, count = torch.unique(
        torch.stack([low, high], dim=1), dim=0, return_inverse=True, return_counts=True
    )
    if len(points) <= groups:
        ids = inverse
    else:
        # relative to the largest bound: squares of float32's extremes stay in float64's reach
        unit = points.abs().max().double()
        found = kmeans((points.double() / unit)[None], groups, seed, count.double()[None])
        ids = found[0][inverse]
    used, ids = torch.unique(ids, return_inverse=True)
    low = torch.full((len(used),), torch.inf).scatter_reduce_(0, ids, low, "amin")
    high = torch.full((len(used),), -torch.inf).scatter_reduce_(0, ids, high, "amax")
    order = (high.double() - low).argsort(stable=True)
    ids = order.argsort()[ids].to(device)
    return ids, affine_params(low[order].to(device), high[order].to(device), bits, symmetric)


def clustered_range(
    x: Tensor, bits: int, *, axis: int, groups: int = 8, symmetric: bool = False, seed: int = 0
) -> ClusteredParams:
    """Min-max ranges of groups of similar slices along ``axis``.

    One group is per-tensor min-max, as many groups as slices are min-max for each slice.

    Args:
        x: any shape.
        bits: 1 to 8.
        axis: whose slices are grouped: channels or tokens.
        groups: see ``cluster_bounds``, as for the others.
        symmetric: of each group's grid.
        seed: of the starting centres.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """
    _, shape = as_rows(x, axis)
    ids, found = cluster_bounds(
        *slice_bounds(x, axis), bits, groups, symmetric=symmetric, seed=seed
    )
    return ClusteredParams(ids, found, shape)
