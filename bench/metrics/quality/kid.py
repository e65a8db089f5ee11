"""Kernel distance (KID): the unbiased squared maximum mean discrepancy of image features.

Binkowski et al., Demystifying MMD GANs, ICLR 2018: kernel ``(x.y / D + 1)^3``. The usual tools
average the estimate over random subsets; here every pair is used once, which is the mean that
those subsets wander around: same expectation, no random part.
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
    """The cubic kernel of (N, D) and (M, D) features, float64 (N, M)."""
    # Seconds to import: paid by those who score, not by those who list or read.
    from torchmetrics.image.kid import poly_kernel

    values: Tensor = poly_kernel(first.double(), second.double())
    return values


def self_similarity(features: Tensor) -> float:
    """Mean kernel value over all pairs of different images of one set, N >= 2.

    Computed in strips, so that 50,000 images do not ask for a matrix of 20 GB.
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

    The bootstrap resamples the test images and keeps the reference. A pair of one image with
    its own copy is left out of each resample, else every replicate would be too large.

    Args:
        test: features of the generated images, (N, D), N >= 2.
        reference: features of the real images, (M, D), M >= 2.
        reference_similarity: ``self_similarity(reference)``, when it is known.
        seed: of the resamples.
        resamples: how many; 0 for the value alone.
        groups: prompt of each test image, where prompts repeat.

    Returns:
        The value times 1000 and its replicates; may be negative where the truth is near 0.

    Raises:
        ValueError: fewer than two images on a side.
    """
    n = test.shape[0]
    if min(n, reference.shape[0]) < 2:
        raise ValueError("a kernel distance needs at least two images on each side")
    known = reference_similarity
    constant = self_similarity(reference) if known is None else known
    within = kernel(test, test)
    across = _mean_kernel(test, reference)
    diagonal = within.diagonal()

    def estimate(counts: Tensor) -> Array:
        # Sums over pairs of different originals, each weighted by how often it was drawn.
        pairs = ((counts @ within) * counts).sum(1) - counts**2 @ diagonal
        drawn = counts.sum(1)
        number = drawn**2 - (counts**2).sum(1)
        found = SCALE * (pairs / number + constant - 2 * counts @ across / drawn)
        return np.asarray(found.numpy())

    value = float(estimate(torch.ones(1, n, dtype=torch.float64))[0])
    if not resamples:
        return Estimate(value, np.empty(0))
    return Estimate(value, estimate(torch.tensor(resample_counts(n, resamples, seed, groups))))


def _mean_kernel(test: Tensor, reference: Tensor) -> Tensor:
    """Mean kernel of each test image to the reference, (N,)."""
    exact = test.double()
    total = torch.zeros(test.shape[0], dtype=torch.float64)
    for start in range(0, reference.shape[0], _ROWS):
        total += kernel(exact, reference[start : start + _ROWS]).sum(1)
    return total / reference.shape[0]
