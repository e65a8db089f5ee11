"""Frechet distance and Inception score from features by the tools' own code, with intervals."""

import numpy as np
import torch
from torch import Tensor, nn

from quantarena.bench.metrics.bootstrap import Array, Groups, resample_counts
from quantarena.bench.metrics.quality.kid import Estimate

RESAMPLES = 50
"""One costs seconds at 2,048 features; a spread is all that is read from them."""
SPLITS = 10


class _Given(nn.Module):
    """Stands where a tool has its network: the features are there already."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, features: Tensor) -> Tensor:
        return features


def torchmetrics_fid(test: Tensor, reference: Tensor) -> float:
    """Squared Frechet distance of (N, D) and (M, D) features by torchmetrics."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(test.shape[1])).set_dtype(torch.float64)
    for features, real in ((reference, True), (test, False)):
        metric.update(features.double(), real=real)
    return float(metric.compute())


def clean_fid(test: Tensor, reference: Tensor) -> float:
    """Squared Frechet distance of (N, D) and (M, D) features by clean-fid."""
    from cleanfid.fid import fid_from_feats

    return float(fid_from_feats(test.double().numpy(), reference.double().numpy()))


def inception_score(logits: Tensor, seed: int = 0) -> float:
    """Exp of the mean divergence of each image's classes from all images', by torchmetrics.

    Args:
        logits: (N, classes).
        seed: of the order in which images fall into ten splits.
    """
    from torchmetrics.image.inception import InceptionScore

    metric = InceptionScore(feature=_Given(logits.shape[1]), splits=SPLITS)
    metric.update(logits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return float(metric.compute()[0])


def frechet_replicates(
    test: Tensor,
    reference: Tensor,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Groups | None = None,
) -> Array:
    """Squared Frechet distances of resampled test features.

    ``tr (A B)^1/2`` of two covariances is the sum of the roots of the eigenvalues of
    ``A^1/2 B A^1/2``, which is symmetric.

    Args:
        test: (N, D).
        reference: (M, D).
        seed: of the resamples.
        resamples: how many.
        groups: prompt of each image, where prompts repeat.
    """
    x, y = test.double(), reference.double()
    mean, covariance = y.mean(0), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    found = []
    for counts in resample_counts(len(x), resamples, seed, groups):
        weight = torch.tensor(counts)
        total = weight.sum()
        centre = weight @ x / total
        offsets = (x - centre) * weight.sqrt()[:, None]
        spread = offsets.T @ offsets / (total - 1)
        cross = torch.linalg.eigvalsh(root @ spread @ root).clamp(min=0).sqrt().sum()
        gap = (centre - mean).pow(2).sum()
        found.append(float(gap + spread.trace() + covariance.trace() - 2 * cross))
    return np.array(found)


def centred(value: float, replicates: Array) -> Estimate:
    """A tool's value with our replicates, moved to be centred on it.

    Resampling adds the small-N bias a second time.
    """
    return Estimate(value, replicates - replicates.mean() + value)


def score_replicates(
    logits: Tensor,
    *,
    seed: int = 0,
    resamples: int = 200,
    groups: Groups | None = None,
) -> Array:
    """Inception scores of resampled images, without splits.

    Args:
        logits: (N, classes).
        seed: of the resamples.
        resamples: how many.
        groups: prompt of each image, where prompts repeat.
    """
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    own = (p * log_p).sum(1)
    counts = torch.tensor(resample_counts(len(p), resamples, seed, groups))
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ p
    return np.asarray((share @ own - torch.special.xlogy(mean, mean).sum(1)).exp().numpy())
