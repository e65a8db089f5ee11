"""FID and Inception score of given features by the published tools, with bootstrap replicates."""

import numpy as np
import torch
from torch import Tensor, nn

from quantarena.bench.metrics.bootstrap import Array, Groups, resample_counts
from quantarena.bench.metrics.quality.kid import Estimate

RESAMPLES = 50
"""Number of resamples: few, since one takes seconds at 2,048 features."""
SPLITS = 10


class _Given(nn.Module):
    """Takes the place of a tool's network and returns the given features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, features: Tensor) -> Tensor:
        return features


def torchmetrics_fid(test: Tensor, reference: Tensor) -> float:
    """The squared Frechet distance of (N, D) and (M, D) features, computed by torchmetrics."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(test.shape[1])).set_dtype(torch.float64)
    for features, real in ((reference, True), (test, False)):
        metric.update(features.double(), real=real)
    return float(metric.compute())


def clean_fid(test: Tensor, reference: Tensor) -> float:
    """The squared Frechet distance of (N, D) and (M, D) features, computed by clean-fid."""
    from cleanfid.fid import fid_from_feats

    return float(fid_from_feats(test.double().numpy(), reference.double().numpy()))


def inception_score(logits: Tensor, seed: int = 0) -> float:
    """The Inception score, computed by torchmetrics: exp of a mean KL divergence.

    The divergence is that of an image's class probabilities from their mean over a split.

    Args:
        logits: (N, classes).
        seed: seed of the order in which images are put into ten splits.
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
    """The squared Frechet distances of resampled test features.

    The term ``tr (A B)^1/2`` of two covariances is the sum of the roots of the eigenvalues of
    ``A^1/2 B A^1/2``, which is symmetric.

    Args:
        test: (N, D).
        reference: (M, D).
        seed: seed of the resamples.
        resamples: number of resamples.
        groups: prompt of each image, if prompts repeat.
    """
    x, y = test.double(), reference.double()
    mean, covariance = y.mean(0), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    distances = []
    for counts in resample_counts(len(x), resamples, seed, groups):
        weight = torch.tensor(counts)
        total = weight.sum()
        centre = weight @ x / total
        offsets = (x - centre) * weight.sqrt()[:, None]
        spread = offsets.T @ offsets / (total - 1)
        cross = torch.linalg.eigvalsh(root @ spread @ root).clamp(min=0).sqrt().sum()
        gap = (centre - mean).pow(2).sum()
        distances.append(float(gap + spread.trace() + covariance.trace() - 2 * cross))
    return np.array(distances)


def centred(value: float, replicates: Array) -> Estimate:
    """A tool's value with our replicates, shifted so that their mean is the value.

    Resampling adds the bias of small N a second time; the shift removes it.
    """
    return Estimate(value, replicates - replicates.mean() + value)


def score_replicates(
    logits: Tensor,
    *,
    seed: int = 0,
    resamples: int = 200,
    groups: Groups | None = None,
) -> Array:
    """The Inception scores of resampled images, without splits.

    Args:
        logits: (N, classes).
        seed: seed of the resamples.
        resamples: number of resamples.
        groups: prompt of each image, if prompts repeat.
    """
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    negative_entropy = (p * log_p).sum(1)
    counts = torch.tensor(resample_counts(len(p), resamples, seed, groups))
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ p
    return np.asarray(
        (share @ negative_entropy - torch.special.xlogy(mean, mean).sum(1)).exp().numpy()
    )
