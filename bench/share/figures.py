"""A row's numbers against its own scores file: means, intervals, counts and times. No torch."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from quantarena.bench.metrics.bootstrap import (
    RESAMPLES,
    Groups,
    interval,
    mean_interval,
    recentred_interval,
)
from quantarena.bench.metrics.names import BIASED_RESAMPLES, IMAGE_PAIRS, INCEPTION, QUALITY
from quantarena.bench.schema import Latency, Measurement, Row
from quantarena.bench.scores import CURVE, FLOOR, FLOOR_SEED, REPLICATES, UNITS
from quantarena.bench.share.bounds import SLACK, floor_of, values_range
from quantarena.bench.target import Target
from quantarena.methods.builtin import FP

Arrays = Mapping[str, NDArray[np.float64]]
RELATIVE = 1e-6
"""Difference of a mean from that of its scores, relative to the spread: sums in other orders."""
SETS = (*QUALITY, *INCEPTION)
"""Metrics of a whole set of images, which have resamples and no values by image."""
MOST_ARRAYS = 256
MOST_CURVE = 1 << 22
"""Most numbers of a curve: calls of a sampler times the few images of a probe."""
_FLOORS = {"bf16": FLOOR, "seed": FLOOR_SEED}
"""Prefix of the arrays of a kind of floor; those between real images have none."""


def strange_figures(row: Row, scores: Arrays) -> Iterator[str]:
    """Each measurement that does not follow from the scores file, as a line."""
    wrong = list(_strange_arrays(row, scores))
    yield from wrong
    if wrong:
        return  # resamples of arrays of any length would fill the memory
    units = scores.get(UNITS)
    groups = None if units is None else tuple(int(number) for number in units)
    for name in IMAGE_PAIRS:
        figure = row.measurement(name)
        if name in scores and (figure is None or figure.value is None):
            yield f"the scores hold {name}, the row has no value of it"
    hashed = "scores_sha256" in row.artefacts  # rows of earlier versions may have held fewer
    for figure in row.measurements:
        kind, metric = floor_of(figure.name)
        array = _FLOORS.get(kind, "") + metric if kind else figure.name
        values, drawn = scores.get(array), scores.get(REPLICATES + figure.name)
        if figure.value is None or (kind and kind not in _FLOORS):
            continue
        if values is not None:
            yield from _of_scores(figure, metric or figure.name, values, groups, row.cell.seed)
        elif figure.name in SETS and drawn is not None:
            yield from _of_replicates(figure, drawn)
        elif hashed or figure.name in IMAGE_PAIRS:
            yield f"the scores hold nothing of {figure.name}, the row has {figure.value:g}"


def _strange_arrays(row: Row, scores: Arrays) -> Iterator[str]:
    """Arrays that no row of so many images has; the memory of what follows depends on them."""
    images = row.cell.budget.images
    if len(scores) > MOST_ARRAYS:
        yield f"the scores hold {len(scores)} arrays, {MOST_ARRAYS} are taken"
        return
    for name, values in scores.items():
        prefix = name.partition(":")[0] + ":" if ":" in name else ""
        if prefix in (FLOOR, FLOOR_SEED) and row.cell.method != FP:
            yield f"the scores hold {name}, which only full precision's do"
        elif name in IMAGE_PAIRS or name == UNITS:
            if values.shape != (images,):
                yield (
                    f"the scores hold {values.shape} values of {name}, its budget has {images} "
                    "images"
                )
        elif prefix in ("", FLOOR, FLOOR_SEED):
            if values.ndim != 1 or not 1 <= values.size <= images:
                yield f"the scores hold {values.shape} values of {name}, of {images} images"
        elif prefix == REPLICATES:
            if values.ndim != 1 or not 1 <= values.size <= RESAMPLES:
                yield f"the scores hold {values.shape} values of {name}, {RESAMPLES} are taken"
        elif prefix != CURVE:
            yield f"the scores hold {name}, which no version writes"
        elif values.ndim != 2 or values.size > MOST_CURVE or values.shape[1] > images:
            yield f"the scores hold {values.shape} values of {name}"


def _of_scores(
    figure: Measurement,
    metric: str,
    values: NDArray[np.float64],
    groups: Groups | None,
    seed: int,
) -> Iterator[str]:
    low, high = values_range(metric)
    if not np.isfinite(values).all():
        yield f"the scores of {figure.name} are not all finite"
        return
    if values.min() < low - SLACK or values.max() > high + SLACK:
        yield f"the scores of {figure.name} are not all within {low:g} and {high:g}"
        return
    mean, *ends = mean_interval(values, seed=seed, groups=groups)
    slack = RELATIVE * max(1e-9, abs(mean), float(np.ptp(values)))
    stated = (figure.value, figure.low, figure.high)
    for what, here, there in zip(
        ("mean", "lower end", "upper end"), stated, (mean, *ends), strict=True
    ):
        if not _equal(here, there, slack):
            yield f"the {what} of {figure.name} is {_text(here)}, its scores give {_text(there)}"
    if figure.n != values.size:
        yield f"{figure.name} says {figure.n} images, its scores hold {values.size}"


def _of_replicates(figure: Measurement, drawn: NDArray[np.float64]) -> Iterator[str]:
    """The interval of a metric of a whole set, and whether its value can be that of the same set.

    The value itself follows from nothing that a row holds.
    """
    assert figure.value is not None
    if not np.isfinite(drawn).all():
        yield f"the resamples of {figure.name} are not all finite"
        return
    biased = figure.name in BIASED_RESAMPLES
    ends = recentred_interval(figure.value, drawn) if biased else interval(drawn)
    spread, middle = float(np.ptp(drawn)), float(np.median(drawn))
    slack = RELATIVE * max(1e-9, abs(figure.value), spread)
    if not all(
        _equal(here, there, slack)
        for here, there in zip((figure.low, figure.high), ends, strict=True)
    ):
        yield f"the interval of {figure.name} does not follow from its resamples"
    elif not biased and abs(figure.value - middle) > spread + slack:
        yield f"{figure.name} is {figure.value:g}, its resamples are around {middle:g}"


def _equal(here: float | None, there: float | None, slack: float) -> bool:
    if here is None or there is None:
        return here is there
    return abs(here - there) <= slack


def strange_times(row: Row) -> Iterator[str]:
    """Each time of a row that no clock gives, or that was taken elsewhere than the cell says.

    Whether a time is true, only its machine knows.
    """
    target, batch = row.cell.target, row.workload.get("batch")
    if row.device is not None and row.device.kind != target.kind:
        yield f"its device is {row.device.kind}, its target {target.kind}"
    if row.latency is None:
        if row.latency_by_batch:
            yield "it has times of further batches and none of its own"
        return
    times = (row.latency, *row.latency_by_batch)
    for time in times:
        yield from _of_clock(time, full_precision=row.cell.method == FP)
        yield from _of_target(time, target)
    # Where memory ran out, images were drawn and steps timed with half of the budget's batch.
    first = batch if isinstance(batch, int) and batch else row.cell.budget.batch
    asked, timed = (first, *row.cell.budget.latency_batches), tuple(one.batch for one in times)
    if timed != asked:
        yield f"its times are of batches {_listed(timed)}, its cell asks for {_listed(asked)}"


def _of_target(time: Latency, target: Target) -> Iterator[str]:
    if time.threads != target.threads:
        yield f"its times are of {time.threads} threads, its target has {target.threads}"
    clock = "cuda_event" if target.kind == "cuda" and not target.offload else "perf_counter"
    if time.clock != clock:
        yield f"its times are of the clock {time.clock[:20]!r}, its target has {clock}"


def _listed(batches: Sequence[int]) -> str:
    shown = ", ".join(map(str, batches[:8]))
    return f"{shown} and more" if len(batches) > 8 else shown


def _of_clock(time: Latency, *, full_precision: bool) -> Iterator[str]:
    if min(time.step_ms, time.fp_step_ms, time.ratio, time.image_ms) <= 0:
        yield "a time or a speed-up is not above 0"
    elif min(time.step_iqr_ms, time.peak_bytes) < 0 or min(time.batch, time.rounds) < 1:
        yield "a spread of times or their memory is below 0, or nothing was timed"
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
