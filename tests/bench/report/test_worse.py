"""Cells that are worse than round-to-nearest say so in their rows."""

from dataclasses import replace

import numpy as np
import pytest

from quantarena.bench.report.worse import (
    GUARD,
    NO_BASELINE,
    NOT_RUN,
    PREFIX,
    UNGUARDED,
    unguarded,
    warn_of_worse,
)
from quantarena.bench.schema import SUSPECT, Measurement, Row, Status
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.store import Store

N = 32
LPIPS = "lpips/alex-v0.1"
SQNR = "noise-sqnr"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def put(store, method, scores, bits="w4a8", warnings=(), sqnr=None, notes=None, policy="uniform"):
    cell = Cell("w", method, bits, policy=policy, budget=Budget(images=N))
    name = f"{cell.key}.npz"
    arrays = {LPIPS: scores} | ({} if sqnr is None else {SQNR: sqnr})
    np.savez(store.folder / name, **arrays)
    measured = tuple(
        Measurement(metric, float(values.mean()), n=len(values), higher_is_better=metric == SQNR)
        for metric, values in arrays.items()
    )
    row = Row(
        cell,
        Status.OK,
        measurements=measured,
        artefacts={"scores": name},
        calibration={"notes": notes or {}},
    )
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


def test_the_guard_holds_policy_budget_too(store):
    """Its rows have no round-to-nearest of their own, and the cost of uniform's."""
    base = np.linspace(0.1, 0.3, N)
    put(store, "rtn", base, "w8a8")
    put(store, "mixed_rtn", base + 0.1, "w8a8", policy="budget")
    put(store, "vidit_q", base, "w8a8", policy="budget")
    put(store, "dgq", base + 0.1, "w8a8", policy="published")
    warn_of_worse(store)
    assert set(suspects(store)) == {"mixed_rtn"}


def test_few_images_are_no_evidence(store):
    put(store, "rtn", np.array([0.1, 0.1]))
    put(store, "dgq", np.array([0.5, 0.6]))
    warn_of_worse(store)
    assert warned(store) == set()


def suspects(store):
    return {
        row.cell.method: line
        for row in store.rows()
        for line in row.warnings
        if line.startswith(SUSPECT)
    }


def test_at_8_bits_the_warning_suspects_our_side(store):
    """Rounding loses nothing there; images may hide it, the error of one call does not."""
    rng = np.random.default_rng(0)
    base, decibel = rng.uniform(0.01, 0.02, N), rng.uniform(38, 42, 8)
    put(store, "rtn", base, "w8a8", sqnr=decibel)
    put(store, "eda_dm", base + 0.01, "w8a8", sqnr=decibel)
    put(store, "dgq", base, "w8a8", sqnr=decibel - rng.uniform(1, 2, 8))
    put(store, "ptq4dm", base + 0.01, "w8a8", sqnr=decibel - 1)
    put(store, "q_diffusion", base, "w8a8", sqnr=decibel)
    put(store, "rtn", base, sqnr=decibel)
    put(store, "dilate_quant", base + 0.01, sqnr=decibel)
    put(store, "repquant", base, sqnr=decibel - 2)
    warn_of_worse(store)
    found = suspects(store)
    assert set(found) == {"eda_dm", "dgq", "ptq4dm"}
    assert warned(store) == {"dilate_quant"}  # below 8 bits the method may be at fault
    assert found["dgq"].startswith(f"{GUARD}{SQNR} differs by -1.")
    assert LPIPS not in found["dgq"]
    assert found["eda_dm"].endswith("Check its data, budget and rates first, then the method")
    assert LPIPS in found["ptq4dm"]
    assert SQNR in found["ptq4dm"]
    assert "rates" not in found["ptq4dm"]  # it learns nothing
    warn_of_worse(store)
    assert suspects(store) == found


def test_the_guard_says_in_how_many_blocks_learning_did_not_carry_over(store):
    base = np.linspace(0.1, 0.3, N)
    blocks = [
        {"block": "a", "held_before": 1.0, "held_after": 2.0},
        {"block": "b", "held_before": 2.0, "held_after": 1.0},
        {"block": "c", "before": 1.0, "after": 2.0},
    ]
    put(store, "rtn", base, "w8a8")
    put(store, "q_diffusion", base + 0.1, "w8a8", notes={"reconstruction": {"weights": blocks}})
    warn_of_worse(store)
    assert "(1 of 2 parts got worse on held-out points)" in suspects(store)["q_diffusion"]


def test_a_suspicion_goes_when_it_is_not_true_any_more(store):
    base = np.linspace(0.1, 0.3, N)
    put(store, "rtn", base, "w8a8")
    put(store, "dgq", base + 0.1, "w8a8")
    warn_of_worse(store)
    assert set(suspects(store)) == {"dgq"}
    put(store, "rtn", base + 0.2, "w8a8")
    warn_of_worse(store)
    assert suspects(store) == {}


def notes_of(store, method):
    (row,) = (row for row in store.rows() if row.cell.method == method)
    return row.warnings


def test_a_cell_that_no_guard_holds_says_why(store):
    """Without a baseline there is no comparison, and silence would look like a pass."""
    base = np.linspace(0.1, 0.3, N)
    put(store, "eda_dm", base, bits="w8a8")
    put(store, "quest", base, bits="w8a8", policy="published")
    put(store, "dgq", base, bits="w4a8")  # below the guarded width nothing is said
    warn_of_worse(store)
    assert notes_of(store, "eda_dm") == (UNGUARDED + NOT_RUN,)
    assert notes_of(store, "quest") == (UNGUARDED + NO_BASELINE,)
    assert notes_of(store, "dgq") == ()
    assert unguarded(store.rows()) == (
        f"cells at w8a8 without a guard: 1, as {NOT_RUN}; 1, as {NO_BASELINE} (add --method rtn)"
    )
    put(store, "rtn", base, bits="w8a8")
    warn_of_worse(store)
    assert notes_of(store, "eda_dm") == (), "the guard holds it now"
    assert unguarded(store.rows()) == f"cells at w8a8 without a guard: 1, as {NO_BASELINE}"
