"""What the tests of whole cells share: a folder for each module, and a cell of few points."""

import pytest

from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages import sequence

BUDGET = Budget(
    images=4,
    batch=4,
    steps=3,
    calibration_images=4,
    calibration_samples=8,
    iterations=1,
    latency_rounds=20,
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """One cache for all tests of the module: cells share what they may share."""
    root = tmp_path_factory.mktemp("run")
    return sequence.Paths(root / "results", root / "cache")


@pytest.fixture(scope="module")
def cell(pixel_folder):
    return Cell(str(pixel_folder), "rtn", "w4a8", budget=BUDGET)
