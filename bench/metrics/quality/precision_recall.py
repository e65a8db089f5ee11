"""Precision and recall: the share of one set that lies inside the manifold of the other.

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
    """The distance of each feature vector to its k-th nearest neighbour in the same set.

    Args:
        features: (N, D), N > k.
        k: number of the neighbour, 1 for the nearest.

    Returns:
        float64 (N,).

    Raises:
        ValueError: there are too few images.
    """
    n = features.shape[0]
    if n <= k:
        raise ValueError(f"the {k} nearest neighbours need more than {k} images, there are {n}")
    distances = []
    for start in range(0, n, _ROWS):
        strip = _distances(features[start : start + _ROWS], features)
        rows = torch.arange(strip.shape[0])
        strip[rows, start + rows] = torch.inf  # an image is no neighbour of itself
        distances.append(strip.kthvalue(k, dim=1).values)
    return torch.cat(distances)


def precision(
    test: Tensor,
    reference: Tensor,
    reference_radii: Tensor,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Groups | None = None,
) -> Estimate:
    """The share of generated images inside the real manifold, in [0, 1]; higher is better.

    Args:
        test: features of the generated images, (N, D).
        reference: features of the real images, (M, D).
        reference_radii: ``radii(reference)``.
        seed: seed of the resamples, which are over the generated images.
        resamples: number of resamples.
        groups: prompt of each generated image, if prompts repeat.
    """
    covered = [
        _covered(test[start : start + _ROWS], reference, reference_radii).any(1)
        for start in range(0, test.shape[0], _ROWS)
    ]
    hits = torch.cat(covered).double().numpy()
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
    """The share of real images inside the generated manifold, in [0, 1]; higher is better.

    The bootstrap draws generated images and keeps the sizes of their balls. A resample has fewer
    distinct images and so covers less: its replicates have the right spread around a lower value.

    Args:
        test: features of the generated images, (N, D), N > k.
        reference: features of the real images, (M, D).
        seed: seed of the resamples.
        resamples: number of resamples.
        groups: prompt of each generated image, if prompts repeat.
        k: number of the neighbour whose distance is the radius of a ball.

    Raises:
        ValueError: there are too few generated images.
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
    """Whether each of P points lies in each of C closed balls, (P, C)."""
    return _distances(points, centres) <= sizes


def _distances(first: Tensor, second: Tensor) -> Tensor:
    # Differences would be a tensor of P x C x D. In float64 the matrix product is accurate enough.
    return torch.cdist(first.double(), second.double(), compute_mode="use_mm_for_euclid_dist")
