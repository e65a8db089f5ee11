"""Closeness to real images: KID and a Frechet distance, or one line why not."""

from importlib.metadata import version

import torch
from quantarena.bench.metrics.bootstrap import RESAMPLES, interval, recentred_interval
from quantarena.bench.metrics.catalogue import FRECHET, KID, METRICS, QUALITY
from quantarena.bench.metrics.features import Features
from quantarena.bench.metrics.frechet import AXES, frechet
from quantarena.bench.metrics.kid import kid
from quantarena.bench.schema import Measurement
from torch import Tensor


def quality(
    test: Tensor, reference: Features, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Measurement, ...]:
    """Every quality metric, in the catalogue's order.

    Args:
        test: features of the generated images by the reference's extractor, (N, D).
        reference: the real images.
        seed: of the resamples.
        resamples: how many.

    Returns:
        One measurement a metric; value None with a reason where N is too small or the
        reference does not vary.
    """
    return tuple(_measure(name, test, reference, seed, resamples) for name in QUALITY)


def not_computed(reason: str, reference: str = "") -> tuple[Measurement, ...]:
    """Every quality metric as a measurement without a value."""
    return tuple(_empty(name, reason, reference) for name in QUALITY)


def _measure(
    name: str, test: Tensor, reference: Features, seed: int, resamples: int
) -> Measurement:
    info = METRICS[name]
    n, m = test.shape[0], reference.tensor.shape[0]
    for count, what in ((n, "generated"), (m, "reference")):
        if count < info.needs:
            reason = f"needs at least {info.needs} {what} images, there are {count}"
            return _empty(name, reason, reference.label)
    if name == KID:
        found = kid(
            test,
            reference.tensor,
            reference_similarity=reference.self_similarity,
            seed=seed,
            resamples=resamples,
        )
        low, high = interval(found.replicates)
    else:
        if reference.pca is None:
            reason = f"the reference images vary in fewer than {AXES} directions"
            return _empty(name, reason, reference.label)
        found = frechet(test, reference.pca, seed=seed, resamples=resamples)
        low, high = recentred_interval(found.value, found.replicates)
    return Measurement(
        name=name,
        value=found.value,
        low=low,
        high=high,
        n=n,
        unit=info.unit,
        higher_is_better=info.higher_is_better,
        board=info.board,
        impl=f"{_impl(name)}, {reference.extractor}, torch {torch.__version__}",
        extractor_sha256=reference.extractor_sha256,
        reference=reference.label,
    )


def _empty(name: str, reason: str, reference: str) -> Measurement:
    info = METRICS[name]
    return Measurement(
        name=name,
        value=None,
        unit=info.unit,
        higher_is_better=info.higher_is_better,
        board=info.board,
        reference=reference,
        reason=reason,
    )


def _impl(name: str) -> str:
    return {
        KID: f"torchmetrics {version('torchmetrics')} kernel, all pairs, unbiased",
        FRECHET: f"quantarena, {AXES} main axes of the reference",
    }[name]
