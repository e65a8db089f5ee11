"""Curves, knees and winners of rows with known scores."""

import numpy as np
import pytest

from quantarena.bench.budget.measure import curves_of
from quantarena.bench.metrics.names import LPIPS, SQNR

N = 32
RNG = np.random.default_rng(0)
BASE = RNG.uniform(0.1, 0.3, N)


def noise(size=0.02):
    return RNG.normal(0.0, size, N)


def panel(runs):
    (found,) = curves_of("t", "c", runs.levels()).panels
    return found


def curve(runs, method):
    return next(curve for curve in panel(runs).curves if curve.method == method)


def verdict(runs, factor, measure=LPIPS):
    (found,) = [v for v in panel(runs).verdicts if (v.factor, v.measure) == (factor, measure)]
    return found


def test_readings_are_means_with_intervals_and_cost(runs):
    runs.put("1", "dgq", BASE, sqnr=np.linspace(19, 21, 8), seconds=12.5)
    (stop,) = curve(runs, "dgq").stops
    assert stop.core_seconds == 12.5
    lpips, error = stop.readings[LPIPS], stop.readings[SQNR]
    assert lpips.value == pytest.approx(BASE.mean())
    assert lpips.low < lpips.value < lpips.high
    assert lpips.n == N
    assert error.value == pytest.approx(0.01)  # 20 dB: a hundredth of the noise is wrong
    assert error.low < error.value < error.high
    assert error.n == 8


def test_seeds_are_pooled(runs):
    runs.put("1", "dgq", BASE, seconds=10)
    runs.put("1", "dgq", BASE + 0.2, seconds=20, seed=1)
    (stop,) = curve(runs, "dgq").stops
    assert stop.core_seconds == 15
    assert stop.readings[LPIPS].value == pytest.approx(BASE.mean() + 0.1)
    assert stop.readings[LPIPS].n == 2 * N


def test_one_wins_where_the_pairs_separate_it(runs):
    runs.put("1", "dgq", BASE)
    runs.put("1", "rtn", BASE + 0.02 + noise(0.005))
    found = verdict(runs, "1")
    assert found.winners == ("DGQ",)
    assert found.text.startswith("DGQ wins; next is RTN, apart by -0.02")


def test_equal_is_called_equal(runs):
    runs.put("1", "dgq", BASE)
    runs.put("1", "eda_dm", BASE - BASE.mean() + BASE[::-1].mean() + noise(0.03))
    runs.put("1", "rtn", BASE + 0.3)
    found = verdict(runs, "1")
    assert set(found.winners) == {"DGQ", "EDA_DM"}
    assert found.text.startswith("equal: ")
    assert found.text.endswith("worse: RTN")


def test_few_images_have_no_winner_and_no_knee(runs):
    for factor in ("1", "4"):
        runs.put(factor, "dgq", np.array([0.1, 0.2]))
        runs.put(factor, "rtn", np.array([0.8, 0.9]))
    assert verdict(runs, "1").winners == ()
    assert "no verdict" in verdict(runs, "1").text
    assert curve(runs, "dgq").knees == {}


def test_the_knee_is_the_smallest_budget_as_good_as_the_best(runs):
    for factor, far, seconds in (("1/4", 0.2, 2), ("1", 0.001, 8), ("4", 0.0, 30), ("16", 0.0, 99)):
        runs.put(factor, "dgq", BASE + far + noise(0.01), seconds=seconds)
    knee = curve(runs, "dgq").knees[LPIPS]
    assert (knee.factor, knee.core_seconds, knee.reached) == ("1", 8, True)


def test_a_method_that_still_improves_has_not_reached_its_knee(runs):
    for factor, far in (("1/4", 0.3), ("1", 0.2), ("4", 0.1)):
        runs.put(factor, "dgq", BASE + far + noise(0.005))
    knee = curve(runs, "dgq").knees[LPIPS]
    assert (knee.factor, knee.reached) == ("4", False)


def test_a_method_that_gets_worse_has_its_knee_before(runs):
    for factor, far in (("1/4", 0.0), ("1", 0.1), ("4", 0.3)):
        runs.put(factor, "dgq", BASE + far + noise(0.005))
    assert curve(runs, "dgq").knees[LPIPS].factor == "1/4"


def test_images_of_other_noise_are_no_pairs(runs):
    runs.put("1", "dgq", BASE)
    runs.put("4", "dgq", BASE - 0.1, noise="another")
    assert curve(runs, "dgq").knees == {}


def test_what_has_not_run_is_missing_and_full_precision_has_no_curve(runs):
    runs.put("1", "fp", BASE * 0, bits="fp")
    runs.put("1", "dgq", BASE)
    runs.put("1", "rtn", None)
    found = panel(runs)
    assert [each.method for each in found.curves] == ["dgq", "rtn"]
    (stop,) = curve(runs, "rtn").stops
    assert (stop.state, stop.readings) == ("missing", {})
    assert verdict(runs, "1").text == "only DGQ was measured"


def test_widths_have_panels_of_their_own(runs):
    runs.put("1", "dgq", BASE, bits="w4a4")
    runs.put("1", "dgq", BASE, bits="w8a8")
    assert [p.setting for p in curves_of("t", "c", runs.levels()).panels] == ["w4a4", "w8a8"]
