"""A row's numbers against its own scores file: means, intervals, counts and times. No torch."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from quantarena.bench.metrics.bootstrap import Groups, mean_interval
from quantarena.bench.metrics.names import IMAGE_PAIRS, LPIPS, SSIM
from quantarena.bench.schema import Latency, Measurement, Row
from quantarena.bench.scores import UNITS
from quantarena.methods.builtin import FP

Arrays = Mapping[str, NDArray[np.float64]]
RELATIVE = 1e-6
"""Difference of a mean from that of its scores, relative to the spread: sums in other orders."""
_BOUNDS = {LPIPS: (0.0, 2.0), SSIM: (-1.0, 1.0)}


def strange_figures(row: Row, scores: Arrays) -> Iterator[str]:
    """Each measurement that does not follow from the scores file, as a line."""
    images = row.cell.budget.images
    units = scores.get(UNITS)
    groups = None if units is None else tuple(int(number) for number in units.ravel())
    for name in IMAGE_PAIRS:
        figure = row.measurement(name)
        values = scores.get(name)
        if values is not None and values.shape != (images,):
            yield f"the scores hold {values.shape} values of {name}, its budget has {images} images"
        if figure is not None and figure.value is not None and values is None:
            yield f"the scores hold nothing of {name}, the row has {figure.value:g}"
        if values is not None and (figure is None or figure.value is None):
            yield f"the scores hold {name}, the row has no value of it"
    for figure in row.measurements:
        # on full precision's row a name of a floor may repeat that of a metric
        values = scores.get(figure.name)
        if figure.value is not None and values is not None and figure.board != "floor":
            yield from _of_scores(figure, np.ravel(values), groups, row.cell.seed)


def _of_scores(
    figure: Measurement, values: NDArray[np.float64], groups: Groups | None, seed: int
) -> Iterator[str]:
    low, high = _BOUNDS.get(figure.name, (-math.inf, math.inf))
    if not np.isfinite(values).all():
        yield f"the scores of {figure.name} are not all finite"
        return
    if values.size == 0 or values.min() < low - 1e-6 or values.max() > high + 1e-6:
        yield f"the scores of {figure.name} are not all within {low:g} and {high:g}"
        return
    if groups is not None and len(groups) < values.size:
        yield f"the scores name {len(groups)} prompts, and {values.size} values of {figure.name}"
        return
    mean, *ends = mean_interval(values, seed=seed, groups=groups)
    slack = RELATIVE * max(1e-9, abs(mean), float(np.ptp(values)))
    stated = (figure.value, figure.low, figure.high)
    for what, here, there in zip(
        ("mean", "lower end", "upper end"), stated, (mean, *ends), strict=True
    ):
        if (here is None) != (there is None) or (
            here is not None and there is not None and not abs(here - there) <= slack
        ):
            yield f"the {what} of {figure.name} is {_text(here)}, its scores give {_text(there)}"
    if figure.n != values.size:
        yield f"{figure.name} says {figure.n} images, its scores hold {values.size}"


def strange_times(row: Row) -> Iterator[str]:
    """Each time of a row that no clock gives. Whether a time is true, only its machine knows."""
    for time in (row.latency, *row.latency_by_batch):
        if time is not None:
            yield from _of_clock(time, full_precision=row.cell.method == FP)
    counted = row.observed
    if counted is not None and (counted.packed_bytes < 0 or counted.fp_bytes <= 0):
        yield f"it has {counted.packed_bytes} bytes of {counted.fp_bytes}"


def _of_clock(time: Latency, *, full_precision: bool) -> Iterator[str]:
    if min(time.step_ms, time.fp_step_ms, time.ratio, time.image_ms) <= 0:
        yield "a time or a speed-up is not above 0"
    elif not time.ratio_low <= time.ratio <= time.ratio_high:
        yield f"speed-up {time.ratio:g} is not within {time.ratio_low:g} and {time.ratio_high:g}"
    elif not full_precision and not 0.5 < time.ratio * time.step_ms / time.fp_step_ms < 2:
        # medians of paired rounds differ from the ratio of medians, but never by as much
        yield (
            f"speed-up {time.ratio:g} does not follow from {time.fp_step_ms:g} ms against "
            f"{time.step_ms:g} ms"
        )


def _text(value: float | None) -> str:
    return "absent" if value is None else f"{value:.6g}"
