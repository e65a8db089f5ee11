"""Clustered groups: slices along one axis that have similar bounds share a range.

Source: DGQ (arXiv:2501.04304), where slices are channels or tokens, and k-means on their
(min, max) finds the few that hold outliers. Unlike there, every range is widened to contain zero,
because the zero point of a packed layer must be a code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.candidates import as_rows
from quantarena.methods.core.quantizer import QuantParams, affine_params

_RESTARTS = 4
_ITERATIONS = 50


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


def _seeds(points: Tensor, weights: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """k-means++ centres (groups, 2): each drawn by its squared distance to those before."""
    chance, chosen = weights, []
    nearest = torch.full_like(weights, torch.inf)
    for _ in range(groups):
        pick = points[torch.multinomial(chance, 1, generator=generator)]
        chosen.append(pick)
        nearest = torch.minimum(nearest, (points - pick).square().sum(1))
        chance = weights * nearest
        if not bool(chance.sum() > 0):
            break
    return torch.cat(chosen)


def _kmeans(points: Tensor, weights: Tensor, groups: int, seed: int) -> Tensor:
    """Cluster (n,) of distinct points (n, 2) that count ``weights`` times; best of restarts."""
    generator = torch.Generator().manual_seed(seed)
    best, best_cost = torch.zeros(len(points), dtype=torch.int64), torch.inf
    for _ in range(_RESTARTS):
        centres = _seeds(points, weights, groups, generator)
        ids, cost = best, torch.inf
        for _ in range(_ITERATIONS):
            distance, ids = torch.cdist(points, centres).min(dim=1)
            before, cost = cost, float((weights * distance.square()).sum())
            if cost >= before:
                break
            total = torch.zeros_like(centres).index_add_(0, ids, points * weights[:, None])
            count = torch.zeros(len(centres), dtype=weights.dtype).index_add_(0, ids, weights)
            # a centre that lost its points stays where it is
            centres = torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), centres)
        if cost < best_cost:
            best, best_cost = ids, cost
    return best


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
        ids = _kmeans(points.double() / unit, count.double(), groups, seed)[inverse]
    used, ids = torch.unique(ids, return_inverse=True)
    low = torch.full((len(used),), torch.inf).scatter_reduce_(0, ids, low, "amin")
    high = torch.full((len(used),), -torch.inf).scatter_reduce_(0, ids, high, "amax")
    order = (high.double() - low).argsort(stable=True)
    ids = order.argsort()[ids].to(device)
    found = affine_params(low[order].to(device), high[order].to(device), bits, symmetric)
    return ids, found


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
