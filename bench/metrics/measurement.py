"""Makes a measurement from per-image values, or from the reason why there are none."""

from dataclasses import replace

import numpy as np

from quantarena.bench.metrics.bootstrap import RESAMPLES, Groups, mean_interval
from quantarena.bench.metrics.names import MetricInfo
from quantarena.bench.schema import Measurement


def unmeasured(info: MetricInfo, reason: str | None = None, reference: str = "") -> Measurement:
    """A measurement without a value.

    Args:
        info: the metric.
        reason: why there is no value; None if the caller fills in a value.
        reference: what the images are compared with.
    """
    return Measurement(
        name=info.name,
        value=None,
        unit=info.unit,
        higher_is_better=info.higher_is_better,
        board=info.board,
        reference=reference,
        reason=reason,
    )


def mean_of(
    info: MetricInfo,
    values: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Groups | None = None,
    impl: str = "",
    sha256: str | None = None,
    reference: str = "",
) -> Measurement:
    """The mean of per-image values with its 95 % bootstrap interval.

    Args:
        info: the metric.
        values: (n,), values of the first n images.
        seed: seed of the resamples.
        resamples: number of resamples.
        groups: prompt of each image, if prompts repeat.
        impl: library and settings that computed the values.
        sha256: hash of the network's weights, if the metric has a network.
        reference: what the images were compared with.

    Raises:
        ValueError: there are no values, or some are not finite.
    """
    mean, low, high = mean_interval(values, seed=seed, resamples=resamples, groups=groups)
    return replace(
        unmeasured(info, None, reference),
        value=mean,
        low=low,
        high=high,
        n=len(values),
        impl=impl,
        extractor_sha256=sha256,
    )
