import numpy as np

from quantarena.leaderboard.ranking.image_scores import (
    Margin,
    ScoreTable,
    pick_metric,
    tie_margin,
    tiers,
)

LPIPS = "lpips/alex-v0.1"


def table(values, floor=(), metric=LPIPS):
    values = np.asarray(values, dtype=float)
    names = tuple(f"m{n}@w8a8" for n in range(len(values)))
    units = tuple(f"s0/i{n:04d}" for n in range(values.shape[1]))
    higher = not metric.startswith("lpips")
    return ScoreTable(
        metric, higher, names, units, (0,) * len(units), values, np.asarray(floor, dtype=float)
    )


def test_lower_lpips_is_nearer_and_higher_psnr_is():
    assert tiers({"a": 0.2, "b": 0.1}, 0.01) == (("b",), ("a",))
    assert tiers({"a": 30.0, "b": 20.0}, 0.1, higher_is_better=True) == (("a",), ("b",))


def test_a_tier_is_never_wider_than_the_margin():
    # Each step is inside the margin, the ends are not: no chain.
    assert tiers({"a": 0.0, "b": 0.9, "c": 1.8}, 1.0) == (("a", "b"), ("c",))


def test_identical_copies_tie_even_at_infinity():
    scores = {"a": np.inf, "b": np.inf, "c": 20.0}
    assert tiers(scores, 0.1, higher_is_better=True) == (("a", "b"), ("c",))


def test_margin_is_the_median_floor():
    margin = tie_margin(table([[0.1, 0.2, 0.3]], floor=[0.01, 0.02, 0.5]))
    assert margin.value == 0.02
    assert "3 images" in margin.source


def test_margin_without_a_floor_says_so():
    margin = tie_margin(table([[0.1, 0.2]], floor=[np.nan, np.nan]))
    assert margin == Margin(1e-3, "fixed: full precision was not measured against itself")


def test_metric_choice():
    one = np.zeros(2)
    assert pick_metric([{"psnr": one, LPIPS: one}, {"psnr": one}]) == LPIPS
    assert pick_metric([{"psnr": one, "ssim": one}]) == "ssim"
    assert pick_metric([{"lpips/a": one}, {"lpips/b": one}, {"lpips/b": one}]) == "lpips/b"
    assert pick_metric([{"clip": one}]) is None
    assert pick_metric([]) is None


def test_quality_is_never_judged():
    assert pick_metric([{"kid/effnet-lite0": np.zeros(3)}]) is None
