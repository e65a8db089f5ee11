"""Kernel distance (KID): the unbiased squared maximum mean discrepancy of image features.

Binkowski et al., Demystifying MMD GANs, ICLR 2018: kernel ``(x.y / D + 1)^3``. Common tools
average the estimate over random subsets. Here every pair is used once, which is the expectation of
that average, without its random part.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quantarena.bench.metrics.bootstrap import RESAMPLES, Array, Groups, resample_counts

SCALE = 1000.0
_ROWS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A value and its bootstrap replicates (resamples,)."""

    value: float
    replicates: Array


def kernel(first: Tensor, second: Tensor) -> Tensor:
    """The cubic kernel of each pair of (N, D) and (M, D) features, float64 (N, M)."""
    # Imported here because it takes seconds, which listings of metrics need not wait.
    from torchmetrics.image.kid import poly_kernel

    values: Tensor = poly_kernel(first.double(), second.double())
    return values


def self_similarity(features: Tensor) -> float:
    """Mean kernel value over all pairs of different images of one set, N >= 2.

    It is computed in strips of rows: a matrix of 50,000 images would take 20 GB.
    """
    n = features.shape[0]
    exact = features.double()
    total = 0.0
    for start in range(0, n, _ROWS):
        strip = kernel(exact[start : start + _ROWS], exact)
        total += float(strip.sum() - strip[:, start:].diagonal().sum())
    return total / (n * (n - 1))


def kid(
    test: Tensor,
    reference: Tensor,
    *,
    reference_similarity: float | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Groups | None = None,
) -> Estimate:
    """Unbiased kernel distance between two sets of features, in units of 1e-3.

    The bootstrap resamples the test images and keeps the reference. Pairs of an image with a copy
    of itself are left out of each resample; they would make every replicate too large.

    Args:
        test: features of the generated images, (N, D), N >= 2.
        reference: features of the real images, (M, D), M >= 2.
        reference_similarity: ``self_similarity(reference)``, if it is known.
        seed: seed of the resamples.
        resamples: number of resamples; 0 for the value alone.
        groups: prompt of each test image, if prompts repeat.

    Returns:
        The value times 1000 and its replicates. Near a true distance of 0 it may be negative.

    Raises:
        ValueError: a set has fewer than two images.
    """
    n = test.shape[0]
    if min(n, reference.shape[0]) < 2:
        raise ValueError("a kernel distance needs at least two images on each side")
    if reference_similarity is None:
        reference_similarity = self_similarity(reference)
    within = kernel(test, test)
    across = _mean_kernel(test, reference)
    diagonal = within.diagonal()

    def estimate(counts: Tensor) -> Array:
        # Sums over pairs of different originals, each weighted by how often it was drawn.
        pairs = ((counts @ within) * counts).sum(1) - counts**2 @ diagonal
        drawn = counts.sum(1)
        number = drawn**2 - (counts**2).sum(1)
        estimates = SCALE * (pairs / number + reference_similarity - 2 * counts @ across / drawn)
        return np.asarray(estimates.numpy())

    value = float(estimate(torch.ones(1, n, dtype=torch.float64))[0])
    if not resamples:
        return Estimate(value, np.empty(0))
    return Estimate(value, estimate(torch.tensor(resample_counts(n, resamples, seed, groups))))


def _mean_kernel(test: Tensor, reference: Tensor) -> Tensor:
    """The mean kernel of each test image with the reference images, (N,)."""
    exact = test.double()
    total = torch.zeros(test.shape[0], dtype=torch.float64)
    for start in range(0, reference.shape[0], _ROWS):
        total += kernel(exact, reference[start : start + _ROWS]).sum(1)
    return total / reference.shape[0]
