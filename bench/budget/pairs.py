"""Scores by image of one method at one budget, pooled over seeds, and differences of two of them.

Only pairs count: the images of two cells come from the same noise, whatever the budget.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.bootstrap import Array, Groups, mean_interval
from quantarena.bench.report.compare import (
    Difference,
    difference,
    paired_gaps,
    prompts_of,
    scores_of,
)
from quantarena.bench.schema import Row
from quantarena.bench.scores import is_metric

Seeds = Mapping[int, Row]
"""The ok rows of one method at one width and budget, by seed."""


@dataclass(slots=True)
class Pooled:
    """Numbers by image of several seeds, with the prompt of each image where prompts repeat."""

    values: list[Array] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)

    def add(self, values: Array, prompts: Groups | None) -> None:
        """Append the numbers of one seed. A metric may have the first images only."""
        self.values.append(values)
        # A prompt that was drawn with several seeds is one unit, not several.
        self.prompts += (prompts or ())[: values.size]

    @property
    def groups(self) -> Groups | None:
        """The prompt of each number, None where some have none."""
        return tuple(self.prompts) if len(self.prompts) == self.joined.size else None

    @property
    def joined(self) -> Array:
        """All numbers, (N,)."""
        return np.concatenate(self.values) if self.values else np.empty(0)


def pooled_scores(folder: Path, seeds: Seeds) -> dict[str, Pooled]:
    """By metric, the finite scores of all seeds; a seed without readable scores is left out."""
    found: dict[str, Pooled] = {}
    for row in seeds.values():
        try:
            scores, prompts = scores_of(folder, row), prompts_of(folder, row)
        except UserError:
            continue
        for name, values in scores.items():
            if is_metric(name) and values.ndim == 1 and np.isfinite(values).all() and values.size:
                found.setdefault(name, Pooled()).add(values, prompts)
    return found


def interval(pooled: Pooled) -> tuple[float, float, float]:
    """The mean and its 95 % interval; one image has an interval of no width."""
    mean, low, high = mean_interval(pooled.joined, groups=pooled.groups)
    return mean, mean if low is None else low, mean if high is None else high


def paired(
    name: str, one: tuple[Path, Seeds], other: tuple[Path, Seeds], *, across_budgets: bool = False
) -> Difference | None:
    """The difference of two methods, or of two budgets of one method, over the seeds of both.

    Args:
        name: the metric.
        one: results folder and rows of A.
        other: the same of B.
        across_budgets: whether the two had different budgets.

    Returns:
        A minus B; None where no seed has scores of both.
    """
    gaps, sample = Pooled(), None
    for seed in _common(one[1], other[1]):
        a, b = one[1][seed], other[1][seed]
        try:
            found = paired_gaps(one[0], a, other[0], b, across_budgets=across_budgets).get(name)
            prompts = prompts_of(one[0], a)
        except UserError:  # without scores a cell counts as not run
            continue
        if found is not None:
            gaps.add(found, prompts)
            sample = a
    return None if sample is None else difference(name, gaps.joined, sample, gaps.groups)


def _common(one: Iterable[int], other: Iterable[int]) -> list[int]:
    return sorted(set(one) & set(other))
