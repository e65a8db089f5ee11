"""Calibration points by density and diversity of features (EDA-DM's TDAC)."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from quantarena.methods.core.record.call_counts import CountedCalls, require_points
from quantarena.methods.core.record.trajectory import Trajectory


def apportion(share: Tensor, total: int) -> Tensor:
    """Integers near ``share * total / share.sum()`` that sum to ``total``.

    Rounds, then corrects as EDA-DM's code does: what is missing goes to the largest shares, what
    is too much leaves the last places. Unlike there, no place falls below zero, and shares that
    are all zero count as equal.

    Args:
        share: non-negative weights, (S,).
        total: their sum in points.

    Raises:
        ValueError: a share is negative or not finite.
    """
    share = share.double()
    if not bool(torch.isfinite(share).all()) or bool((share < 0).any()):
        raise ValueError("shares must be finite and at least 0")
    share = share / share.max() if bool(share.max() > 0) else torch.ones_like(share)
    counts = torch.round(share / share.sum() * total).long()
    residual = total - int(counts.sum())
    # rounding moves a place by half a point at most, so one pass over the places suffices
    if residual > 0:
        counts[share.argsort(descending=True, stable=True)[:residual]] += 1
    elif residual < 0:
        counts[counts.nonzero().flatten()[residual:]] -= 1
    return counts


@dataclass(frozen=True, slots=True, eq=False)
class TDAC(CountedCalls):
    """More points where features are dense and diverse (EDA-DM, arXiv:2401.04585).

    Density D_t counts the other calls whose features lie within a mean squared distance; diversity
    V_t sums ``1 - cosine`` over channels to all other calls. Call t gets points in proportion to
    ``D_t + weight * V_t``, both scaled to [0, 1].

    Attributes:
        samples: points in all; exactly that many come out.
        features: one entry a call, (S, n, C, ...); EDA-DM takes the input of the middle attention,
            see ``core.features``.
        weight: lambda. The paper's values: 1.2 (CIFAR, ImageNet), 1.0 (LSUN), 5.0 (COCO).
        radius: mean squared distance that counts as near. It depends on the scale of the features
            (the code has 3.0 or 0.3, by data set), so None takes a quantile instead.
        quantile: which pairwise distance is the radius where none is given; our choice.
        repeat: allow a call to hold one point several times where images run out.
    """

    samples: int
    features: Tensor = field(repr=False)  # the row that a policy is noted on is no place for it
    weight: float = 1.2
    radius: float | None = None
    quantile: float = 0.25
    repeat: bool = False

    def density(self) -> Tensor:
        """D_t, (S,): other calls within the radius."""
        flat = self._features().flatten(1)
        distance = _squared_distance(flat) / flat.shape[1]
        other = ~torch.eye(len(flat), dtype=torch.bool)
        if len(flat) < 2:
            return torch.zeros(len(flat), dtype=torch.float64)
        radius = self.radius
        if radius is not None and not radius >= 0:
            raise ValueError(f"radius must be at least 0, not {radius}")
        if radius is None:
            # one of the distances: between two of them it would depend on rounding
            radius = float(distance[other].quantile(self.quantile, interpolation="lower"))
        return ((distance <= radius) & other).sum(1).double()

    def diversity(self) -> Tensor:
        """V_t, (S,): sum of ``1 - cosine`` over images, places and other calls.

        Of unit vectors ``1 - cos(u, v) = |u - v|**2 / 2``, which is exactly 0 for equal ones.
        """
        unit = F.normalize(self._features(), dim=2, eps=1e-30)
        return _squared_distance(unit.flatten(1)).sum(1) / 2

    def count(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """Points of each call, (S,); the generator has no part in it.

        Raises:
            ValueError: settings or features that do not fit.
        """
        if self.features.shape[0] != trajectory.calls:
            raise ValueError(
                f"features of {self.features.shape[0]} calls, {trajectory.calls} recorded"
            )
        require_points(self.samples)
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be finite and at least 0, not {self.weight}")
        return apportion(
            _spread(self.density()) + self.weight * _spread(self.diversity()), self.samples
        )

    def _features(self) -> Tensor:
        if self.features.dim() < 3 or self.features.numel() == 0:
            raise ValueError(f"features must be (S, n, C, ...), not {tuple(self.features.shape)}")
        if not bool(torch.isfinite(self.features).all()):
            raise ValueError("features hold NaN or infinity")
        return self.features.detach().double()


def _squared_distance(rows: Tensor) -> Tensor:
    """Between all pairs, (S, S), by differences: a Gram matrix has noise where rows are equal."""
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()


def _spread(x: Tensor) -> Tensor:
    """``x`` scaled to [0, 1]; zeros where all are equal up to rounding, which is 0/0."""
    low, high = x.min(), x.max()
    if bool(high - low <= 1e-9 * high.abs()):
        return torch.zeros_like(x)
    return (x - low) / (high - low)
