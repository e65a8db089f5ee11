"""Factors of a budget: what they may be, and what they scale."""

from dataclasses import fields
from fractions import Fraction

import pytest

from quantarena.bench.budget.factors import (
    DEFAULT,
    MOST_RECORDED,
    budgets,
    parse_factors,
    run_name,
    scaled,
    spent,
)
from quantarena.bench.errors import UserError
from quantarena.bench.plan.presets import PRESETS
from quantarena.bench.spec import Budget

QUICK = PRESETS["quick"].grid.budget


def test_factors_are_sorted_and_each_counts_once():
    assert parse_factors(["4", "1/4", "x1", "0.25", "16"]) == tuple(map(Fraction, DEFAULT))


@pytest.mark.parametrize(
    "text", ["", "a", "0", "-1", "1/0", "nan", "1e99999999", "0.0001", "1001", "1//2", "²"]
)
def test_what_is_no_factor_is_refused_in_one_line(text):
    with pytest.raises(UserError, match="give numbers from 1/1000 to 1000") as error:
        parse_factors([text])
    assert "\n" not in str(error.value)


def test_too_many_factors_are_refused():
    with pytest.raises(UserError, match="too many"):
        parse_factors([str(n) for n in range(1, 30)])


def test_a_budget_of_factor_1_is_the_preset_itself():
    """Its cells have the preset's keys, so that they share its cache."""
    for preset in PRESETS.values():
        assert scaled(preset.grid.budget, Fraction(1)) == preset.grid.budget


def test_calibration_is_scaled_and_evaluation_is_not():
    large, small = scaled(QUICK, Fraction(4)), scaled(QUICK, Fraction(1, 4))
    assert (large.iterations, small.iterations) == (4 * QUICK.iterations, QUICK.iterations / 4)
    assert large.calibration_samples == 4 * QUICK.calibration_samples
    assert small.range_samples == QUICK.range_samples / 4
    assert small.calibration_images == QUICK.calibration_images / 4
    learned = {"iterations", "calibration_samples", "range_samples", "calibration_images"}
    for name in {f.name for f in fields(Budget)} - learned:
        assert getattr(large, name) == getattr(small, name) == getattr(QUICK, name)


def test_images_to_record_have_a_floor_and_a_ceiling():
    assert scaled(QUICK, Fraction(1000)).calibration_images == MOST_RECORDED
    assert scaled(QUICK, Fraction(1, 1000)).calibration_images == 4
    assert scaled(Budget(calibration_images=2), Fraction(1, 4)).calibration_images == 2
    beyond = Budget(calibration_images=9000)
    assert scaled(beyond, Fraction(4)).calibration_images == 9000


def test_no_number_becomes_zero_or_absurd():
    assert scaled(Budget(iterations=3), Fraction(1, 100)).iterations == 1
    with pytest.raises(UserError, match="above"):
        scaled(Budget(iterations=10**8), Fraction(100))


def test_factors_of_one_budget_are_refused():
    few = Budget(4, 4, 0, 4, 4, 4, 2)
    with pytest.raises(UserError, match="x1/100 and x1/10 come to the same budget"):
        budgets(few, [Fraction(1, 100), Fraction(1, 10)])


def test_folders_and_words():
    assert run_name("mine", Fraction(1, 4)) == "mine-x0.25"
    assert run_name("mine", Fraction(16)) == "mine-x16"
    near = (Fraction(100), Fraction("100.0001"))
    assert len({run_name("mine", factor) for factor in near}) == 2, "two budgets, two folders"
    assert "1,600 iterations" in spent(scaled(QUICK, Fraction(16)))
