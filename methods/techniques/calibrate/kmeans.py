"""k-means of many sets of points at once, with k-means++ starts and restarts."""

import torch
from torch import Tensor

RESTARTS = 4
ITERATIONS = 50


def _seeds(points: Tensor, weights: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """k-means++ centres (B, groups, d): each drawn by its squared distance to those before."""
    chance, chosen = weights, []
    nearest = torch.full_like(weights, torch.inf)
    for _ in range(groups):
        pick = torch.multinomial(chance, 1, generator=generator)
        centre = points.take_along_dim(pick.unsqueeze(2), 1)
        chosen.append(centre)
        nearest = torch.minimum(nearest, (points - centre).square().sum(2))
        chance = weights * nearest
        # a set with no point away from its centres takes one twice: the second stays empty
        chance = torch.where(chance.sum(1, keepdim=True) > 0, chance, weights)
    return torch.cat(chosen, dim=1)


def kmeans(points: Tensor, groups: int, seed: int, weights: Tensor | None = None) -> Tensor:
    """Cluster each of B sets of points; of several starts the best for each set.

    Args:
        points: (B, n, d) float64.
        groups: most clusters; some may have no point.
        seed: of the starting centres; equal seeds give equal clusters.
        weights: (B, n) how often each point counts; once by default.

    Returns:
        Cluster of each point, (B, n) int64 below ``groups``.
    """
    weights = torch.ones_like(points[..., 0]) if weights is None else weights
    generator = torch.Generator().manual_seed(seed)
    best = torch.zeros(points.shape[:2], dtype=torch.int64)
    best_cost = torch.full((len(points),), torch.inf, dtype=points.dtype)
    for _ in range(RESTARTS):
        centres = _seeds(points, weights, groups, generator)
        ids, cost = best, torch.full_like(best_cost, torch.inf)
        for _ in range(ITERATIONS):
            distance, ids = torch.cdist(points, centres).min(dim=2)
            before, cost = cost, (weights * distance.square()).sum(1)
            if bool((cost >= before).all()):
                break
            place = ids.unsqueeze(2).expand_as(points)
            total = torch.zeros_like(centres).scatter_add_(1, place, points * weights.unsqueeze(2))
            count = torch.zeros_like(centres[..., 0]).scatter_add_(1, ids, weights).unsqueeze(2)
            # a centre that lost its points stays where it is
            centres = torch.where(count > 0, total / count.clamp(min=1), centres)
        better = cost < best_cost
        best = torch.where(better.unsqueeze(1), ids, best)
        best_cost = torch.where(better, cost, best_cost)
    return best
