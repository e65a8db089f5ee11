"""Closeness to real images: KID and a Frechet distance, or one line why not."""

from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
from torch import Tensor

from quantarena.bench.metrics.bootstrap import (
    RESAMPLES,
    Array,
    Groups,
    interval,
    recentred_interval,
)
from quantarena.bench.metrics.catalogue import FRECHET, KID, METRICS, QUALITY
from quantarena.bench.metrics.features import Features
from quantarena.bench.metrics.frechet import AXES, frechet
from quantarena.bench.metrics.kid import Estimate, kid
from quantarena.bench.schema import Measurement


@dataclass(frozen=True, slots=True, eq=False)
class Quality:
    """The quality metrics of one set of images.

    Attributes:
        measurements: one a metric, in the catalogue's order.
        replicates: metric to (resamples,) bootstrap values, where it was computed. Rows of one
            table share their resamples: the difference of two rows' replicates is the
            replicate of their difference.
    """

    measurements: tuple[Measurement, ...]
    replicates: dict[str, Array]


def quality(
    test: Tensor,
    reference: Features,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Groups | None = None,
) -> Quality:
    """Every quality metric, in the catalogue's order.

    Args:
        test: features of the generated images by the reference's extractor, (N, D).
        reference: the real images.
        seed: of the resamples.
        resamples: how many.
        groups: prompt of each image, where prompts repeat.

    Returns:
        One measurement a metric; value None with a reason where N is too small or the
        reference does not vary.
    """
    measurements, replicates = [], {}
    for name in QUALITY:
        found = _estimate(name, test, reference, seed, resamples, groups)
        if isinstance(found, str):
            measurements.append(_empty(name, found, reference.label))
            continue
        replicates[name] = found.replicates
        measurements.append(_filled(name, found, test.shape[0], reference))
    return Quality(tuple(measurements), replicates)


def not_computed(reason: str, reference: str = "") -> tuple[Measurement, ...]:
    """Every quality metric as a measurement without a value."""
    return tuple(_empty(name, reason, reference) for name in QUALITY)


def _estimate(
    name: str,
    test: Tensor,
    reference: Features,
    seed: int,
    resamples: int,
    groups: Groups | None,
) -> Estimate | str:
    """The estimate, or why there is none."""
    needs = METRICS[name].needs
    for count, what in ((len(test), "generated"), (len(reference.tensor), "reference")):
        if count < needs:
            return f"needs at least {needs} {what} images, there are {count}"
    if name == KID:
        return kid(
            test,
            reference.tensor,
            reference_similarity=reference.self_similarity,
            seed=seed,
            resamples=resamples,
            groups=groups,
        )
    if reference.pca is None:
        return f"the reference images vary in fewer than {AXES} directions"
    return frechet(test, reference.pca, seed=seed, resamples=resamples, groups=groups)


def _filled(name: str, found: Estimate, n: int, reference: Features) -> Measurement:
    if name == FRECHET:
        low, high = recentred_interval(found.value, found.replicates)
    else:
        low, high = interval(found.replicates)
    return replace(
        _empty(name, None, reference.label),
        value=found.value,
        low=low,
        high=high,
        n=n,
        impl=f"{_impl(name)}, {reference.extractor}, torch {torch.__version__}",
        extractor_sha256=reference.extractor_sha256,
    )


def _empty(name: str, reason: str | None, reference: str) -> Measurement:
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
