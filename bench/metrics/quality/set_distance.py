"""The quality metrics of one set of images: KID, a Frechet distance, precision and recall."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from quantarena.bench.metrics.bootstrap import (
    RESAMPLES,
    Array,
    Groups,
    interval,
    recentred_interval,
)
from quantarena.bench.metrics.measurement import unmeasured
from quantarena.bench.metrics.names import (
    BIASED_RESAMPLES,
    FRECHET,
    KID,
    METRICS,
    PRECISION,
    QUALITY,
    RECALL,
)
from quantarena.bench.metrics.quality.features import Features
from quantarena.bench.metrics.quality.frechet import AXES, frechet
from quantarena.bench.metrics.quality.kid import Estimate, kid
from quantarena.bench.metrics.quality.precision_recall import NEIGHBOURS, precision, recall
from quantarena.bench.schema import Measurement


@dataclass(frozen=True, slots=True, eq=False)
class Quality:
    """The quality metrics of one set of images.

    Attributes:
        measurements: one for each metric, in the order of ``names.QUALITY``.
        replicates: metric to (resamples,) bootstrap values, if it was computed. Rows of one
            table share their resamples, so the difference of the replicates of two rows are
            replicates of their difference.
    """

    measurements: tuple[Measurement, ...]
    replicates: dict[str, Array]


@dataclass(frozen=True, slots=True)
class Resampling:
    """Settings of the bootstrap: seed, number of resamples, prompt of each image."""

    seed: int
    resamples: int
    groups: Groups | None

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings as keyword arguments of an estimator."""
        return {"seed": self.seed, "resamples": self.resamples, "groups": self.groups}


def quality(
    test: Tensor,
    reference: Features,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Groups | None = None,
) -> Quality:
    """Compute every quality metric, in the order of ``names.QUALITY``.

    Args:
        test: features of the generated images by the reference's extractor, (N, D).
        reference: the real images.
        seed: seed of the resamples.
        resamples: number of resamples.
        groups: prompt of each image, if prompts repeat.

    Returns:
        One measurement for each metric. Its value is None, with a reason, if N is too small or
        the reference does not vary enough.
    """
    measurements, replicates = [], {}
    for name in QUALITY:
        estimate = _estimate(name, test, reference, Resampling(seed, resamples, groups))
        if isinstance(estimate, str):
            measurements.append(unmeasured(METRICS[name], estimate, reference.label))
            continue
        replicates[name] = estimate.replicates
        measurements.append(_measurement(name, estimate, test.shape[0], reference))
    return Quality(tuple(measurements), replicates)


def not_computed(reason: str, reference: str = "") -> tuple[Measurement, ...]:
    """Measurements without a value, one for each metric of this module."""
    return tuple(unmeasured(METRICS[name], reason, reference) for name in QUALITY)


def _estimate(name: str, test: Tensor, reference: Features, how: Resampling) -> Estimate | str:
    """The estimate, or the reason why there is none."""
    needs = METRICS[name].needs
    for count, what in ((len(test), "generated"), (len(reference.tensor), "reference")):
        if count < needs:
            return f"needs at least {needs} {what} images, there are {count}"
    return _ESTIMATORS[name](test, reference, how)


def _kid(test: Tensor, reference: Features, how: Resampling) -> Estimate:
    known = reference.self_similarity
    return kid(test, reference.tensor, reference_similarity=known, **how.arguments)


def _frechet(test: Tensor, reference: Features, how: Resampling) -> Estimate | str:
    if reference.pca is None:
        return f"the reference images vary in fewer than {AXES} directions"
    return frechet(test, reference.pca, **how.arguments)


def _precision(test: Tensor, reference: Features, how: Resampling) -> Estimate:
    assert reference.radii is not None  # _estimate has checked that there are enough images
    return precision(test, reference.tensor, reference.radii, **how.arguments)


def _recall(test: Tensor, reference: Features, how: Resampling) -> Estimate:
    return recall(test, reference.tensor, **how.arguments)


_ESTIMATORS: dict[str, Callable[[Tensor, Features, Resampling], Estimate | str]] = {
    KID: _kid,
    FRECHET: _frechet,
    PRECISION: _precision,
    RECALL: _recall,
}


def _measurement(name: str, estimate: Estimate, n: int, reference: Features) -> Measurement:
    if name in BIASED_RESAMPLES:
        low, high = recentred_interval(estimate.value, estimate.replicates)
    else:
        low, high = interval(estimate.replicates)
    return replace(
        unmeasured(METRICS[name], None, reference.label),
        value=estimate.value,
        low=low,
        high=high,
        n=n,
        impl=f"{_impl(name)}, {reference.extractor}, torch {torch.__version__}",
        extractor_sha256=reference.extractor_sha256,
    )


def _impl(name: str) -> str:
    return {
        KID: f"torchmetrics {version('torchmetrics')} kernel, all pairs, unbiased",
        FRECHET: f"quantarena, {AXES} main axes of the reference",
        PRECISION: f"quantarena, {NEIGHBOURS} nearest neighbours",
        RECALL: f"quantarena, {NEIGHBOURS} nearest neighbours",
    }[name]
