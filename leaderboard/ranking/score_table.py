"""Gathers the per-image scores of one board in the table that is ranked."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from quantarena.bench.schema import Row, Status
from quantarena.bench.scores import FLOOR, FLOOR_SEED, UNITS
from quantarena.leaderboard.ranking.image_scores import FAMILIES, ScoreTable, pick_metric
from quantarena.leaderboard.ranking.read_results import (
    FP_METHOD,
    contestant,
    load_scores,
)
from quantarena.leaderboard.ranking.votes import Floats

NOTHING: Mapping[str, Floats] = {}


def score_table(rows: Sequence[Row], folder: Path) -> tuple[ScoreTable | None, dict[str, str]]:
    """Per-image scores of a board's quantized cells.

    Returns:
        The table, None where no cell has scores; and for each contestant outside the table the
        reason why it is left out.
    """
    unranked: dict[str, str] = {}
    by_name: dict[str, dict[int, Mapping[str, Floats]]] = {}
    floors: dict[int, Mapping[str, Floats]] = {}
    for row in rows:
        name = contestant(row.cell)
        try:
            scores, damage = load_scores(folder, row), ""
        except ValueError as error:
            scores, damage = (
                NOTHING,
                f"its scores file cannot be read ({error}): run the cell again",
            )
        if row.cell.method == FP_METHOD:
            unranked[name] = f"the reference; {damage}" if damage else "the reference"
            floors[row.cell.seed] = scores
        elif row.status is not Status.OK:
            unranked.setdefault(name, f"{row.status.value}: {row.reason or 'no reason given'}")
        elif not scores:
            unranked.setdefault(name, damage or "no per-image scores")
        else:
            by_name.setdefault(name, {})[row.cell.seed] = scores
    metric = pick_metric([scores for seeds in by_name.values() for scores in seeds.values()])
    for name in [name for name, seeds in by_name.items() if not _has(seeds, metric)]:
        unranked[name] = f"no per-image {metric}" if metric else "no per-image fidelity metric"
        del by_name[name]
    if metric is None or not by_name:
        return None, unranked
    length: dict[int, int] = {}
    prompts: dict[int, Floats] = {}
    for seeds in by_name.values():
        for seed, scores in seeds.items():
            length[seed] = max(length.get(seed, 0), len(scores.get(metric, ())))
            prompts.setdefault(seed, scores.get(UNITS, np.empty(0)))
    units = tuple(
        _unit(seed, image, prompts[seed])
        for seed in sorted(length)
        for image in range(length[seed])
    )
    runs = tuple(seed for seed in sorted(length) for _ in range(length[seed]))
    names = tuple(sorted(by_name))
    values = np.vstack([_joined(by_name[name], metric, length) for name in names])
    for name in names:
        unranked.pop(name, None)
    floor = _joined(floors, FLOOR + metric, length)
    higher = FAMILIES[metric.split("/")[0]]
    return ScoreTable(metric, higher, names, units, runs, values, floor), unranked


def another_draw(rows: Sequence[Row], folder: Path, metric: str) -> float | None:
    """Mean distance of full precision's images from those of other noise; None if not measured.

    It is the largest difference that makes sense: an image of the same prompt and model that has
    nothing else in common with the other one.
    """
    found: list[float] = []
    for row in rows:
        if row.cell.method == FP_METHOD:
            try:
                values = load_scores(folder, row).get(FLOOR_SEED + metric, np.empty(0))
            except ValueError:  # score_table says so
                continue
            found += values[np.isfinite(values)].tolist()
    return float(np.mean(found)) if found else None


def _unit(seed: int, image: int, prompts: Floats) -> str:
    """Name of an image's unit of evidence: its prompt, which other images and seeds may share."""
    if image < len(prompts):
        return f"p{int(prompts[image]):04d}"
    return f"s{seed}/i{image:04d}"


def _has(seeds: Mapping[int, Mapping[str, Floats]], metric: str | None) -> bool:
    return metric is not None and any(
        bool(np.any(~np.isnan(scores.get(metric, np.empty(0))))) for scores in seeds.values()
    )


def _joined(
    seeds: Mapping[int, Mapping[str, Floats]], metric: str, length: Mapping[int, int]
) -> Floats:
    """Scores of one contestant over all seeds, one after the other; NaN where it has none."""
    parts = []
    for seed in sorted(length):
        part = np.full(length[seed], np.nan)
        values = seeds.get(seed, {}).get(metric, np.empty(0))[: length[seed]]
        part[: len(values)] = values
        parts.append(part)
    return np.concatenate(parts)
