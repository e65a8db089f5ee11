"""Paired comparison of two cells: their images come from the same seeds, so they form pairs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.bootstrap import Array, Groups, mean_interval, recentred_interval
from quantarena.bench.report.power import BEYOND_REASON, images_to_separate
from quantarena.bench.schema import Measurement, Row, Status
from quantarena.bench.scores import FLOOR, REPLICATES, UNITS, is_metric, read_scores

_FP = "fp"
LEAST_IMAGES = 8
"""Least number of images, or of prompts where these repeat, on which a verdict rests.

Of fewer, a bootstrap interval is too narrow: of 2 images with equal signs it never holds 0."""
_NOISE = "no difference beyond the noise"


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference A minus B of two cells in one metric.

    Attributes:
        name: name of the metric.
        mean: mean difference over the images.
        low: lower end of the 95 % interval of the mean; None for one image.
        high: upper end of that interval.
        n: number of images.
        unit: unit of the metric.
        verdict: ``A is better``, ``B is better``, that there is no difference beyond the noise
            and how many images would show one, or that there are too few images.
        needed: number of images at which four of five runs would show a difference of this size;
            None where it is above ``BEYOND_REASON`` or unknown.
    """

    name: str
    mean: float
    low: float | None
    high: float | None
    n: int
    unit: str
    verdict: str
    needed: int | None = None


def compare_rows(folder_a: Path, a: Row, folder_b: Path, b: Row) -> tuple[Difference, ...]:
    """The paired difference of every metric that both cells have.

    Raises:
        UserError: as ``paired_gaps``.
    """
    gaps = paired_gaps(folder_a, a, folder_b, b)
    scores_a, scores_b = scores_of(folder_a, a), scores_of(folder_b, b)
    groups = prompts_of(folder_a, a)
    by_image = [difference(name, gap, a, groups) for name, gap in gaps.items()]
    return tuple(by_image + _by_set(a, scores_a, b, scores_b))


def paired_gaps(
    folder_a: Path, a: Row, folder_b: Path, b: Row, *, across_budgets: bool = False
) -> dict[str, Array]:
    """The differences A minus B by image, (N,), in every metric that both cells have.

    Full precision is perfectly near to itself. Where one of the cells is full precision, its
    scores are therefore those of full precision with weights rounded to bfloat16.

    Args:
        folder_a: results folder of A.
        a: one cell.
        folder_b: results folder of B.
        b: the other cell.
        across_budgets: whether the cells may differ in what they spent on calibration. Their
            images must be pairs all the same.

    Raises:
        UserError: the cells did not draw the same images, or have no scores.
    """
    for row in (a, b):
        if row.status is not Status.OK:
            raise UserError(f"{row.cell.label} ({row.key}) has no scores: {row.status}")
    drawn = [_drawn(row, across_budgets=across_budgets) for row in (a, b)]
    if drawn[0] != drawn[1]:
        raise UserError(
            f"{a.key} and {b.key} differ in workload, seed, budget or noise, so that their images "
            "are no pairs: compare cells of one run and seed"
        )
    scores_a, scores_b = scores_of(folder_a, a), scores_of(folder_b, b)
    if a.cell.method != b.cell.method:
        scores_a, scores_b = (_as_rounded(s, r) for s, r in ((scores_a, a), (scores_b, b)))
    gaps = {}
    for name in scores_a:
        if is_metric(name) and name in scores_b and scores_a[name].shape == scores_b[name].shape:
            gap = scores_a[name] - scores_b[name]
            if gap.ndim == 1 and gap.size and np.isfinite(gap).all():
                gaps[name] = gap
    if not gaps:
        raise UserError(f"{a.key} and {b.key} have no per-image score in common")
    return gaps


def _drawn(row: Row, *, across_budgets: bool) -> tuple[object, ...]:
    """What decides which images a cell draws; equal where two cells' images are pairs."""
    cell, noise = row.cell, row.workload.get("noise_sha256")
    if not across_budgets:
        return cell.shared_key, noise
    budget = cell.budget
    return cell.workload, cell.seed, budget.images, budget.batch, budget.steps, noise


def prompts_of(folder: Path, row: Row) -> Groups | None:
    """The prompt of each image as a number; None where images have no prompts.

    Raises:
        UserError: the scores cannot be read.
    """
    units = scores_of(folder, row).get(UNITS)
    return None if units is None else tuple(units.astype(int).tolist())


def difference(name: str, gap: Array, row: Row, groups: Groups | None = None) -> Difference:
    """The difference of two cells in one metric.

    Args:
        name: name of the metric.
        gap: (N,) differences A minus B, one per image.
        row: a row with the metric, whose measurement says whether higher is better.
        groups: prompt of each image, where prompts repeat.
    """
    mean, low, high = mean_interval(gap, groups=groups)
    deviation = _deviation(gap, groups)
    measured, units = row.measurement(name), _units(int(gap.size), groups)
    return _judged(name, mean, (low, high), int(gap.size), units, deviation, measured)


def _by_set(
    a: Row, scores_a: Mapping[str, Array], b: Row, scores_b: Mapping[str, Array]
) -> list[Difference]:
    """The differences in metrics of whole sets of images.

    Rows of one seed share their resamples, so their bootstrap values form pairs.
    """
    differences = []
    for key in scores_a:
        name = key.removeprefix(REPLICATES)
        of_a, of_b = a.measurement(name), b.measurement(name)
        if name == key or key not in scores_b or of_a is None or of_b is None:
            continue
        if of_a.value is None or of_b.value is None or of_a.reference != of_b.reference:
            continue
        gap, mean = scores_a[key] - scores_b[key], of_a.value - of_b.value
        ends = recentred_interval(mean, gap)
        # The spread of a mean falls with the root of the images: this is the share of one image.
        deviation = float(gap.std(ddof=1)) * math.sqrt(of_a.n)
        differences.append(_judged(name, mean, ends, of_a.n, of_a.n, deviation, of_a))
    return differences


def _judged(
    name: str,
    mean: float,
    ends: tuple[float | None, float | None],
    n: int,
    units: int,
    deviation: float,
    measured: Measurement | None,
) -> Difference:
    low, high = ends
    needed = images_to_separate(mean, deviation)
    if low is None or high is None or measured is None:
        verdict, needed = _NOISE, None
    elif units < LEAST_IMAGES:
        verdict = f"no verdict: {units} images or prompts, at least {LEAST_IMAGES} are needed"
    elif low > 0 or high < 0:
        verdict = f"{'A' if (low > 0) == measured.higher_is_better else 'B'} is better"
    elif low == high == 0:
        verdict = f"{_NOISE}: equal image by image"
    elif needed is None:
        verdict = f"{_NOISE}; cannot be separated at this budget, nor at {BEYOND_REASON:,} images"
    else:
        verdict = f"{_NOISE}; about {max(needed, n + 1):,} images would separate them"
    unit = measured.unit if measured else ""
    return Difference(name, mean, low, high, n, unit, verdict, needed)


def _units(n: int, groups: Groups | None) -> int:
    """Number of independent units among ``n`` images: images, or prompts where these repeat."""
    prompts = len(set(groups[:n])) if groups is not None else n
    return n if prompts == 1 else prompts


def _deviation(gap: Array, groups: Groups | None) -> float:
    """Standard deviation of one image's difference.

    Where prompts repeat, it is that of a prompt's mean, scaled to one image.
    """
    if gap.size < 2:
        return math.nan
    if groups is None or _units(gap.size, groups) == gap.size:
        return float(gap.std(ddof=1))
    members = np.unique(groups[: gap.size], return_inverse=True)[1]
    sizes = np.bincount(members)
    means = np.bincount(members, weights=gap) / sizes
    return float(means.std(ddof=1) * math.sqrt(sizes.mean()))


def _as_rounded(scores: dict[str, Array], row: Row) -> dict[str, Array]:
    """Scores of a cell; full precision's are those of full precision with bfloat16 weights."""
    if row.cell.method != _FP:
        return scores
    replicates = {key: values for key, values in scores.items() if key.startswith(REPLICATES)}
    rounded = {k.removeprefix(FLOOR): v for k, v in scores.items() if k.startswith(FLOOR)}
    return replicates | rounded


def scores_of(folder: Path, row: Row) -> dict[str, Array]:
    """Every array of a row's scores file.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    name = row.artefacts.get("scores")
    if not name:
        raise UserError(f"{row.cell.label} ({row.key}) has no scores file: run the cell again")
    path = folder / name
    try:
        return read_scores(path)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): run the cell again") from None
