"""Frechet distance along the 32 principal axes of the reference, for sets of few images.

The covariance of 1,280 features cannot be estimated from 128 images; that of 32 features can. The
distance does not see differences outside these axes, so it should be read together with KID.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quantarena.bench.metrics.bootstrap import RESAMPLES, Groups, resample_counts
from quantarena.bench.metrics.quality.kid import Estimate

AXES = 32
_STRIP = 250


class Pca(NamedTuple):
    """Principal axes of the reference features; float64.

    Attributes:
        mean: (D,).
        axes: (k, D), unit rows, widest first.
        variances: (k,), variances along the axes (divided by N - 1).
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor


def fit_pca(features: Tensor, axes: int = AXES) -> Pca | None:
    """The principal axes of (N, D) features, or None if the features vary along fewer axes."""
    n, dim = features.shape
    if min(n - 1, dim) < axes:
        return None
    exact = features.double()
    mean = exact.mean(0)
    centred = exact - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / (n - 1))
    variances = values.flip(0)[:axes]
    if not bool(variances[-1] > 1e-10 * variances[0]) or float(variances[0]) <= 0:
        return None
    rows = vectors.T.flip(0)[:axes]
    # The sign of an axis is arbitrary: the largest component is made positive in every file.
    signs = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    return Pca(mean, (rows * signs).contiguous(), variances.contiguous())


def distance(mean: Tensor, covariance: Tensor, variances: Tensor) -> Tensor:
    """The squared Frechet distance of Gaussians to one of mean 0 and diagonal covariance.

    It is ``|m|^2 + tr C + tr V - 2 tr (V^1/2 C V^1/2)^1/2``. The matrix under the root is
    symmetric, so no complex square root is needed.

    Args:
        mean: (..., k).
        covariance: (..., k, k).
        variances: (k,), the diagonal V.

    Returns:
        (...), at least 0 up to rounding.
    """
    root = variances.sqrt()
    eigenvalues = torch.linalg.eigvalsh(root[:, None] * covariance * root)
    cross = eigenvalues.clamp(min=0).sqrt().sum(-1)
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    squared: Tensor = mean.pow(2).sum(-1) + trace + variances.sum() - 2 * cross
    return squared


def frechet(
    test: Tensor,
    pca: Pca,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Groups | None = None,
) -> Estimate:
    """The squared Frechet distance to the reference, along its principal axes.

    Its bias is positive and grows as N falls: compare values at equal N only.

    Args:
        test: features of the generated images, (N, D), N >= 2.
        pca: principal axes of the reference.
        seed: seed of the resamples, which are over test images; the reference is kept.
        resamples: number of resamples; 0 for the value alone.
        groups: prompt of each test image, if prompts repeat.

    Raises:
        ValueError: there are fewer than two images.
    """
    n = test.shape[0]
    if n < 2:
        raise ValueError("a Frechet distance needs at least two images")
    points = (test.double() - pca.mean) @ pca.axes.T
    centre = points.mean(0)
    offsets = points - centre
    products = (offsets[:, :, None] * offsets[:, None, :]).flatten(1)

    def estimate(counts: Tensor) -> Tensor:
        drawn = counts.sum(1, keepdim=True)
        shift = counts @ offsets / drawn
        second = (counts @ products / drawn).view(-1, len(centre), len(centre))
        covariance = (second - shift[:, :, None] * shift[:, None, :]) * (n / (n - 1))
        return distance(centre + shift, covariance, pca.variances)

    value = float(estimate(torch.ones(1, n, dtype=torch.float64))[0])
    if not resamples:
        return Estimate(value, np.empty(0))
    counts = torch.tensor(resample_counts(n, resamples, seed, groups))
    # In strips: 2,000 matrices at once would take more memory than the rest of the scoring.
    strips = (counts[start : start + _STRIP] for start in range(0, resamples, _STRIP))
    return Estimate(value, np.concatenate([estimate(strip).numpy() for strip in strips]))
