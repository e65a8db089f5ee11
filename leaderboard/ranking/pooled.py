"""Means over several seeds with intervals that know what the seeds share.

The runs of several seeds draw from the same prompts and are compared with the same real images.
Their errors are not independent then, and adding half widths in quadrature gives intervals that
are too narrow.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quantarena.bench.schema import Row, Status
from quantarena.bench.scores import REPLICATES, UNITS, is_metric
from quantarena.leaderboard.inference.sign_flips import FEWEST, LEVEL
from quantarena.leaderboard.inference.student import reach
from quantarena.leaderboard.ranking.read_results import contestant, load_scores
from quantarena.leaderboard.ranking.votes import Floats, Ints

Ends = tuple[float, float]


def ends_of(rows: Sequence[Row], folder: Path) -> dict[str, dict[str, Ends]]:
    """``pooled_ends`` of each contestant of a board that has several ok rows."""
    finished: dict[str, list[Row]] = {}
    for row in rows:
        if row.status is Status.OK:
            finished.setdefault(contestant(row.cell), []).append(row)
    return {name: pooled_ends(own, folder) for name, own in finished.items() if len(own) > 1}


def pooled_ends(rows: Sequence[Row], folder: Path) -> dict[str, Ends]:
    """95 % intervals of the mean over the seeds of one contestant, by name of the measurement.

    Per-image metrics: the images of one prompt are one unit, whatever their seed. Metrics of a set
    of images: resamples of the seeds are averaged one by one, since all seeds resample alike.
    A metric that some seed has no array of is left out.

    Args:
        rows: ok rows of one contestant, one for each seed.
        folder: the results folder.
    """
    try:
        scores = [load_scores(folder, row) for row in rows]
    except ValueError:  # a damaged file: the fidelity board says so
        return {}
    shared = set.intersection(*(set(one) for one in scores)) if scores else set()
    prompts = [one.get(UNITS) for one in scores]
    places: dict[tuple[int, ...], Ints] = {}
    found: dict[str, Ends] = {}
    for name in sorted(shared):
        if is_metric(name):
            ends = _of_images([one[name] for one in scores], prompts, places)
        elif name.startswith(REPLICATES):
            ends = _of_sets(rows, name.removeprefix(REPLICATES), [one[name] for one in scores])
        else:
            continue
        if ends is not None:
            found[name.removeprefix(REPLICATES)] = ends
    return found


def _of_images(
    values: Sequence[Floats], prompts: Sequence[Floats | None], places: dict[tuple[int, ...], Ints]
) -> Ends | None:
    """Student's interval over units, each of which counts by its images.

    Args:
        values: scores of each seed.
        prompts: of each seed's images.
        places: the unit of each image, by the numbers of images; metrics share it.
    """
    pairs = list(zip(values, prompts, strict=True))
    sums: Floats
    count: Floats
    if any(units is None or len(units) < len(column) for column, units in pairs):
        sums = np.asarray(np.concatenate(values))
        count = np.ones_like(sums)
    else:
        sizes = tuple(map(len, values))
        if sizes not in places:
            names = np.concatenate([u[: len(v)] for v, u in pairs if u is not None])
            places[sizes] = np.unique(names, return_inverse=True)[1]
        place = places[sizes]
        sums = np.asarray(np.bincount(place, np.concatenate(values)), dtype=np.float64)
        count = np.asarray(np.bincount(place), dtype=np.float64)
    n = len(sums)
    if n < FEWEST or not np.isfinite(sums).all():
        return None
    middle = sums.sum() / count.sum()
    # the error of a ratio of sums: what units add beyond the mean times their images
    error = np.sqrt(np.square(sums - middle * count).sum() * n / (n - 1)) / count.sum()
    half = reach(n - 1) * float(error)
    return float(middle) - half, float(middle) + half


def _of_sets(rows: Sequence[Row], name: str, replicates: Sequence[Floats]) -> Ends | None:
    figures = [row.measurement(name) for row in rows]
    values = [figure.value for figure in figures if figure is not None]
    known = [value for value in values if value is not None]
    if len(known) < len(rows):
        return None
    length = min(len(drawn) for drawn in replicates)
    mean = np.mean([drawn[:length] for drawn in replicates], axis=0)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(mean - mean.mean(), [tail, 1 - tail]) + np.mean(known)
    return float(low), float(high)
