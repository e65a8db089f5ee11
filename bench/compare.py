"""Two cells, image by image: the same seeds make the same images, so differences are paired."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.bootstrap import Array, mean_interval
from quantarena.bench.schema import Row, Status


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of A minus B over the images of one metric.

    Attributes:
        name: of the metric.
        mean: of the differences.
        low: lower end of the 95 % interval; None for one image.
        high: upper end.
        n: images.
        unit: of the metric.
        verdict: ``A is better``, ``B is better`` or ``no difference beyond the noise``.
    """

    name: str
    mean: float
    low: float | None
    high: float | None
    n: int
    unit: str
    verdict: str


def compare_rows(folder_a: Path, a: Row, folder_b: Path, b: Row) -> tuple[Difference, ...]:
    """The paired difference of every metric that both cells have.

    Raises:
        UserError: as ``paired_gaps``.
    """
    gaps = paired_gaps(folder_a, a, folder_b, b)
    return tuple(difference(name, gap, a) for name, gap in gaps.items())


def paired_gaps(folder_a: Path, a: Row, folder_b: Path, b: Row) -> dict[str, Array]:
    """A minus B, image by image, (N,), of every metric that both cells have.

    Raises:
        UserError: the cells did not draw the same images, or have no scores.
    """
    for row in (a, b):
        if row.status is not Status.OK:
            raise UserError(f"{row.cell.label} ({row.key}) has no scores: {row.status}")
    if a.cell.shared_key != b.cell.shared_key:
        raise UserError(
            f"{a.key} and {b.key} differ in workload, seed or budget, so that their images are no "
            "pairs: compare cells of one run and seed"
        )
    scores_a, scores_b = _scores(folder_a, a), _scores(folder_b, b)
    found = {}
    for name in scores_a:
        # Full precision is what fidelity is measured against: it has no finite score of its own.
        if name in scores_b and scores_a[name].shape == scores_b[name].shape:
            gap = scores_a[name] - scores_b[name]
            if gap.ndim == 1 and gap.size and np.isfinite(gap).all():
                found[name] = gap
    if not found:
        raise UserError(f"{a.key} and {b.key} have no per-image score in common")
    return found


def difference(name: str, gap: Array, row: Row) -> Difference:
    """Mean and verdict of one metric's paired gaps; the row tells which way is better."""
    mean, low, high = mean_interval(gap)
    measured = row.measurement(name)
    verdict = "no difference beyond the noise"
    if low is not None and high is not None and measured is not None and (low > 0 or high < 0):
        verdict = f"{'A' if (low > 0) == measured.higher_is_better else 'B'} is better"
    unit = measured.unit if measured else ""
    return Difference(name, mean, low, high, int(gap.size), unit, verdict)


def _scores(folder: Path, row: Row) -> dict[str, Array]:
    name = row.artefacts.get("scores")
    path = folder / name if name else None
    if path is None or not path.is_file():
        raise UserError(f"{row.cell.label} ({row.key}) has no scores file: run the cell again")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: np.asarray(archive[key], dtype=np.float64) for key in archive.files}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): run the cell again") from None
