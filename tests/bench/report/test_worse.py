"""Cells that are worse than round-to-nearest say so in their rows."""

from dataclasses import replace

import numpy as np
import pytest

from quantarena.bench.report.worse import PREFIX, warn_of_worse
from quantarena.bench.schema import Measurement, Row, Status
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.store import Store

N = 32
LPIPS = "lpips/alex-v0.1"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def put(store, method, scores, bits="w4a8", warnings=()):
    cell = Cell("w", method, bits, budget=Budget(images=N))
    name = f"{cell.key}.npz"
    np.savez(store.folder / name, **{LPIPS: scores})
    measured = (Measurement(LPIPS, float(scores.mean()), n=len(scores)),)
    row = Row(cell, Status.OK, measurements=measured, artefacts={"scores": name})
    return store.put(replace(row, workload={"noise_sha256": "n"}, warnings=warnings))


def warned(store):
    return {
        row.cell.method
        for row in store.rows()
        if any(warning.startswith(PREFIX) for warning in row.warnings)
    }


def test_only_what_is_worse_beyond_its_interval_is_warned_of(store):
    rng = np.random.default_rng(0)
    base = rng.uniform(0.1, 0.3, N)
    put(store, "rtn", base)
    put(store, "dgq", base + rng.normal(0.05, 0.02, N), warnings=("another",))
    put(store, "eda_dm", base - 0.05)
    put(store, "ptq4dm", base + rng.normal(0.0, 0.02, N))
    put(store, "svdquant", base + 1, bits="w4a4")  # round-to-nearest did not run at w4a4
    warn_of_worse(store)
    assert warned(store) == {"dgq"}
    (row,) = (row for row in store.rows() if row.cell.method == "dgq")
    assert row.warnings[0] == "another"
    assert f"{LPIPS} differs by +0.0" in row.warnings[1]
    before = store.path(row.key).stat().st_mtime_ns
    warn_of_worse(store)
    assert store.path(row.key).stat().st_mtime_ns == before


def test_a_warning_goes_when_the_baseline_changes(store):
    base = np.linspace(0.1, 0.3, N)
    put(store, "rtn", base)
    put(store, "dgq", base + 0.1)
    warn_of_worse(store)
    assert warned(store) == {"dgq"}
    put(store, "rtn", base + 0.2)
    warn_of_worse(store)
    assert warned(store) == set()


def test_few_images_are_no_evidence(store):
    put(store, "rtn", np.array([0.1, 0.1]))
    put(store, "dgq", np.array([0.5, 0.6]))
    warn_of_worse(store)
    assert warned(store) == set()
