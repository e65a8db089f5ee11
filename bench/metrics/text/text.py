"""The text metrics: the alignment scorer of this package, and CLIPScore if CLIP is installed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.bootstrap import Groups
from quantarena.bench.metrics.measurement import mean_of, unmeasured
from quantarena.bench.metrics.names import ALIGNMENT, CLIP_SCORE, METRICS, R_PRECISION, TEXT
from quantarena.bench.metrics.text.alignment import DISTRACTORS, alignment, scorer
from quantarena.bench.metrics.text.clip import clip_score, find_clip
from quantarena.bench.schema import Measurement

Measured = tuple[tuple[Measurement, ...], dict[str, np.ndarray]]
"""Measurements, and the (N,) values of each metric that was computed."""


def without_prompts(
    reason: str = "the workload draws from no prompts",
) -> tuple[Measurement, ...]:
    """Measurements without a value, for workloads without prompts."""
    return tuple(unmeasured(METRICS[name], reason) for name in TEXT)


def text_metrics(
    images: Tensor,
    features: Tensor | None,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    groups: Groups | None = None,
) -> Measured:
    """Compute every text metric of images and their prompts.

    Args:
        images: uint8 (N, 3, H, W).
        features: their EfficientNet-lite0 features, (N, D); None if they are not square.
        prompts: N prompts.
        seed: seed of the resamples.
        groups: prompt of each image, if prompts repeat.
    """
    shipped, values = _shipped(features, prompts, seed, groups)
    clip, clip_values = _clip(images, prompts, seed, groups)
    return shipped + clip, values | clip_values


def _shipped(
    features: Tensor | None, prompts: Sequence[str], seed: int, groups: Groups | None
) -> Measured:
    names = (ALIGNMENT, R_PRECISION)
    if features is None:
        reason = "the extractor takes square images"
        return tuple(unmeasured(METRICS[name], reason) for name in names), {}
    known = scorer()
    try:
        values = alignment(features, prompts, known)
    except ValueError as error:
        return tuple(unmeasured(METRICS[name], str(error)) for name in names), {}
    impl = {
        ALIGNMENT: f"quantarena, cosine in MiniLM's space, torch {torch.__version__}",
        R_PRECISION: f"quantarena, nearer than {DISTRACTORS} other captions",
    }
    return tuple(
        mean_of(
            METRICS[name],
            values[name],
            seed=seed,
            groups=groups,
            impl=impl[name],
            sha256=known.sha256,
            reference=known.label,
        )
        for name in names
    ), values


def _clip(images: Tensor, prompts: Sequence[str], seed: int, groups: Groups | None) -> Measured:
    info, folder = METRICS[CLIP_SCORE], find_clip()
    if isinstance(folder, str):
        return (unmeasured(info, folder),), {}
    from importlib.metadata import version

    try:
        values, model, sha256 = clip_score(images, prompts, folder)
    except UserError as error:
        return (unmeasured(info, error.message),), {}
    impl = f"torchmetrics {version('torchmetrics')}, {model}, 77 tokens at most"
    measured = mean_of(
        info, values, seed=seed, groups=groups, impl=impl, sha256=sha256, reference="prompts"
    )
    return (measured,), {CLIP_SCORE: values}
