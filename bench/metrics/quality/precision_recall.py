"""Precision and recall: which part of either set lies among the other's images.

Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, NeurIPS
2019. A set's manifold is the union of balls around its features, each as large as the distance to
the k-th nearest other image of the set. Precision is the share of generated images inside the
real manifold (are they realistic?), recall the share of real ones inside the generated manifold
(is the variety there?).
"""

import numpy as np
import torch
from torch import Tensor

from quantarena.bench.metrics.bootstrap import RESAMPLES, Groups, resample_counts
from quantarena.bench.metrics.quality.kid import Estimate

NEIGHBOURS = 3
_ROWS = 1024


def radii(features: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Distance of each feature vector to its k-th nearest other one.

    Args:
        features: (N, D), N > k.
        k: which neighbour.

    Returns:
        float64 (N,).

    Raises:
        ValueError: too few images.
    """
    n = features.shape[0]
    if n <= k:
        raise ValueError(f"the {k} nearest neighbours need more than {k} images, there are {n}")
    found = []
    for start in range(0, n, _ROWS):
        strip = _distances(features[start : start + _ROWS], features)
        rows = torch.arange(strip.shape[0])
        strip[rows, start + rows] = torch.inf  # oneself is no neighbour
        found.append(strip.kthvalue(k, dim=1).values)
    return torch.cat(found)


def precision(
    test: Tensor,
    reference: Tensor,
    reference_radii: Tensor,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Groups | None = None,
) -> Estimate:
    """Share of generated images inside the real manifold, in [0, 1]; higher is better.

    Args:
        test: features of the generated images, (N, D).
        reference: features of the real images, (M, D).
        reference_radii: ``radii(reference)``.
        seed: of the resamples, over the generated images.
        resamples: how many.
        groups: prompt of each generated image, where prompts repeat.
    """
    found = [
        _covered(test[start : start + _ROWS], reference, reference_radii).any(1)
        for start in range(0, test.shape[0], _ROWS)
    ]
    hits = torch.cat(found).double().numpy()
    counts = resample_counts(len(hits), resamples, seed, groups)
    return Estimate(float(hits.mean()), np.asarray(counts @ hits / counts.sum(1)))


def recall(
    test: Tensor,
    reference: Tensor,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Groups | None = None,
    k: int = NEIGHBOURS,
) -> Estimate:
    """Share of real images inside the generated manifold, in [0, 1]; higher is better.

    The bootstrap draws generated images and keeps the balls' sizes, so a resample, which has
    fewer distinct images, covers less: read its spread, not its place.

    Args:
        test: features of the generated images, (N, D), N > k.
        reference: features of the real images, (M, D).
        seed: of the resamples.
        resamples: how many.
        groups: prompt of each generated image, where prompts repeat.
        k: neighbour that gives a ball its size.

    Raises:
        ValueError: too few generated images.
    """
    sizes = radii(test, k)
    counts = torch.tensor(resample_counts(test.shape[0], resamples, seed, groups))
    drawn = (counts > 0).float().T
    value, replicates = 0.0, np.zeros(resamples)
    for start in range(0, reference.shape[0], _ROWS):
        inside = _covered(reference[start : start + _ROWS], test, sizes)
        value += float(inside.any(1).sum())
        replicates += (inside.float() @ drawn > 0).sum(0).double().numpy()
    m = reference.shape[0]
    return Estimate(value / m, replicates / m)


def _covered(points: Tensor, centres: Tensor, sizes: Tensor) -> Tensor:
    """(P, C): whether each point lies in each ball; its edge belongs to it."""
    return _distances(points, centres) <= sizes


def _distances(first: Tensor, second: Tensor) -> Tensor:
    # exact differences would be a tensor of P x C x D; float64 keeps the short form accurate
    return torch.cdist(first.double(), second.double(), compute_mode="use_mm_for_euclid_dist")
