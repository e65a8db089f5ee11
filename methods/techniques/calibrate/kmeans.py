"""Batched k-means: clusters many sets of points at once, with k-means++ starts and restarts."""

import torch
from torch import Tensor

RESTARTS = 4
ITERATIONS = 50


def _seeds(points: Tensor, weights: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """k-means++ centres (B, groups, d), each drawn by squared distance to the previous ones."""
    probability, chosen = weights, []
    nearest = torch.full_like(weights, torch.inf)
    for _ in range(groups):
        pick = torch.multinomial(probability, 1, generator=generator)
        centre = points.take_along_dim(pick.unsqueeze(2), 1)
        chosen.append(centre)
        nearest = torch.minimum(nearest, (points - centre).square().sum(2))
        probability = weights * nearest
        # a set whose points all lie on centres takes one twice: the second cluster stays empty
        probability = torch.where(probability.sum(1, keepdim=True) > 0, probability, weights)
    return torch.cat(chosen, dim=1)


def kmeans(points: Tensor, groups: int, seed: int, weights: Tensor | None = None) -> Tensor:
    """Cluster each of B sets of points; each set gets the best of several starts.

    It is computed on the host, where the starts are drawn: so it is the same on every device.

    Args:
        points: (B, n, d) float64.
        groups: number of clusters; some may stay empty.
        seed: seed of the starting centres; equal seeds give equal clusters.
        weights: weight of each point, (B, n); 1 by default.

    Returns:
        Cluster number of each point, (B, n) int64 below ``groups``, on the device of ``points``.
    """
    place_of_points = points.device
    points = points.cpu()
    weights = torch.ones_like(points[..., 0]) if weights is None else weights.cpu()
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
    return best.to(place_of_points)
