"""From per-image values, or a reason why there are none, to a measurement."""

from dataclasses import replace

import numpy as np

from quantarena.bench.metrics.bootstrap import RESAMPLES, Groups, mean_interval
from quantarena.bench.metrics.names import MetricInfo
from quantarena.bench.schema import Measurement


def unmeasured(info: MetricInfo, reason: str | None = None, reference: str = "") -> Measurement:
    """A measurement without a value.

    Args:
        info: the metric.
        reason: why there is none; None where a value is put in afterwards.
        reference: what it would be compared with.
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
    """Mean of per-image values with its 95 % bootstrap interval.

    Args:
        info: the metric.
        values: (n,), of the first n images.
        seed: of the resamples.
        resamples: how many.
        groups: prompt of each image, where prompts repeat.
        impl: what computed it.
        sha256: of the network's weights, if any.
        reference: what it was compared with.

    Raises:
        ValueError: no values, or some that are not finite.
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
