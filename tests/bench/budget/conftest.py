"""Rows of several budgets, with scores by image that a test chooses."""

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from quantarena.bench.budget.curves import Level, LevelRun
from quantarena.bench.metrics.names import LPIPS, SQNR
from quantarena.bench.schema import Measurement, Row, Status
from quantarena.bench.spec import Budget, Cell

N = 32


@dataclass
class Runs:
    """Rows of runs by factor; ``put`` adds one."""

    folder: Path
    rows: dict = field(default_factory=dict)
    cells: dict = field(default_factory=dict)

    def put(self, factor, method, scores, *, sqnr=None, seconds=1.0, seed=0, bits="w4a4", **more):
        budget = Budget(images=N, iterations=int(100 * Fraction(factor)))
        cell = Cell("w", method, bits, seed, budget=budget)
        self.cells.setdefault(factor, []).append(cell)
        if scores is None:
            return
        place = self.folder / factor.replace("/", "of")
        place.mkdir(exist_ok=True)
        arrays = {LPIPS: np.asarray(scores)} | ({} if sqnr is None else {SQNR: sqnr})
        np.savez(place / f"{cell.key}.npz", **arrays)
        measured = tuple(
            Measurement(name, float(values.mean()), n=len(values), higher_is_better=name == SQNR)
            for name, values in arrays.items()
        )
        row = Row(
            cell,
            Status.OK,
            measurements=measured,
            calibration={"core_seconds": seconds},
            method={"title": method.upper()},
            workload={"noise_sha256": more.get("noise", "n")},
            machine={"cpu": "a processor"},
            artefacts={"scores": f"{cell.key}.npz"},
        )
        self.rows.setdefault(factor, []).append(row)

    def levels(self):
        return [
            LevelRun(
                Level(factor, f"c-x{factor}", "25 iterations"),
                self.folder / factor.replace("/", "of"),
                tuple(cells),
                tuple(self.rows.get(factor, ())),
            )
            for factor, cells in self.cells.items()
        ]


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)
