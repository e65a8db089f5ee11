import numpy as np
import pytest

from quantarena.leaderboard.ranking.judge import (
    Margin,
    ScoreTable,
    cast_votes,
    mean_ranks,
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


def test_methods_inside_the_floor_tie_everywhere():
    board = table([[0.010] * 8, [0.012] * 8, [0.2] * 8], floor=[0.005] * 8)
    for vote in cast_votes(board, tie_margin(board)):
        assert vote.tiers == (("m0@w8a8", "m1@w8a8"), ("m2@w8a8",))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 9, 12])
def test_sets_have_k_members_and_never_repeat(count):
    values = np.random.default_rng(0).random((count, 30))
    votes = cast_votes(table(values), Margin(0.0, ""), rounds=3)
    assert len({(vote.unit, vote.contestants) for vote in votes}) == len(votes)
    assert all(len(vote.contestants) == min(4, count) for vote in votes)
    if count > 1:
        seen = [name for vote in votes for name in vote.contestants]
        assert len(set(seen)) == count
    else:
        assert not votes


def test_sets_depend_on_the_seed_only():
    values = np.random.default_rng(0).random((9, 20))
    board, margin = table(values), Margin(0.0, "")
    assert cast_votes(board, margin, seed=1) == cast_votes(board, margin, seed=1)
    assert cast_votes(board, margin, seed=1) != cast_votes(board, margin, seed=2)


def test_a_missing_image_is_left_out_not_imputed():
    board = table([[0.1, np.nan], [0.2, 0.2], [0.3, 0.3]])
    votes = cast_votes(board, Margin(0.0, ""), rounds=1)
    assert [vote.contestants for vote in votes if vote.unit.endswith("1")] == [
        ("m1@w8a8", "m2@w8a8")
    ]


def test_metric_choice():
    one = np.zeros(2)
    assert pick_metric([{"psnr": one, LPIPS: one}, {"psnr": one}]) == LPIPS
    assert pick_metric([{"psnr": one, "ssim": one}]) == "ssim"
    assert pick_metric([{"lpips/a": one}, {"lpips/b": one}, {"lpips/b": one}]) == "lpips/b"
    assert pick_metric([{"clip": one}]) is None
    assert pick_metric([]) is None


def test_quality_is_never_judged():
    assert pick_metric([{"kid/effnet-lite0": np.zeros(3)}]) is None


def test_mean_ranks_share_ties():
    board = table([[0.1, 0.1], [0.1, 0.2], [0.5, np.nan]])
    assert mean_ranks(board, Margin(0.0, "")).tolist() == [1.25, 1.75, 3.0]
