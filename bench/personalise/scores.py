"""How well tuned pictures show their subject, follow the text, and leave other pictures alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from quantarena.bench.metrics.bootstrap import Array, mean_interval
from quantarena.bench.metrics.fidelity.lpips import lpips
from quantarena.bench.metrics.names import ALIGNMENT
from quantarena.bench.metrics.quality.effnet import effnet_lite0
from quantarena.bench.metrics.quality.extractor import extract
from quantarena.bench.metrics.text.alignment import alignment, scorer

SUBJECT = "subject/effnet-lite0"
"""Mean cosine between features of a picture and of the subject's images, higher is better."""
DRIFT = "prior-drift/lpips-alex-v0.1"
"""LPIPS of pictures of other prompts to those of the model before tuning, lower is better."""
FEATURE_DRIFT = "prior-drift/effnet-lite0"
"""The same in features: 1 minus their cosine."""


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over pictures, with its 95 % interval; no interval for one picture."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, values: Array) -> "Score":
        """The mean of one value for each picture."""
        return cls(*mean_interval(values), len(values))


def features(images: Tensor) -> Tensor:
    """EfficientNet-lite0 features of uint8 images, of unit length."""
    return F.normalize(extract(images, effnet_lite0()), dim=1)


def subject_values(drawn: Tensor, subject: Tensor) -> Array:
    """For each picture, its mean cosine with the images of the subject, (N,).

    Args:
        drawn: pictures, uint8 (N, 3, S, S).
        subject: images of the subject on which nothing was tuned, uint8 (M, 3, S, S).
    """
    cosines = features(drawn) @ features(subject).T
    return np.asarray(cosines.mean(1).double().numpy())


def text_values(drawn: Tensor, captions: Sequence[str]) -> Array:
    """The alignment of each picture with its caption, (N,); captions have no token."""
    return alignment(extract(drawn, effnet_lite0()), captions, scorer())[ALIGNMENT]


def drift_values(before: Tensor, after: Tensor) -> tuple[Array, Array]:
    """LPIPS and feature distance of each picture before and after tuning, (N,) each."""
    cosines = (features(before) * features(after)).sum(1)
    return lpips(before, after), np.asarray((1 - cosines).clamp(min=0).double().numpy())
