"""The budgets of a budget curve: that of a preset, times each factor. Plain data, no torch.

A factor scales what a method learns with: the iterations of each block, the points that it learns
from, the points that it finds ranges on, and the recorded images that all points come from. It
leaves alone what the methods are judged by: images, sampler steps and timed rounds.
"""

import re
from collections.abc import Iterable
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

from quantarena.bench.errors import UserError
from quantarena.bench.plan.presets import MOST, PRESETS
from quantarena.bench.spec import Budget

DEFAULT = ("1/4", "1", "4", "16")
SMALLEST, LARGEST = Fraction(1, 1000), Fraction(1000)
MOST_FACTORS = 16
MOST_RECORDED = max(preset.grid.budget.calibration_images for preset in PRESETS.values())
"""Most images that are recorded for calibration, that of the largest preset.

A recording costs a network call an image and step. Ranges gain nothing from so many images, and no
paper takes more.
"""
LEAST_RECORDED = 4
"""Fewer images than these say nothing of others; a preset with fewer keeps its own number."""

_COUNTS = {
    "iterations": "iterations",
    "calibration_samples": "points to learn from",
    "range_samples": "points for ranges",
    "calibration_images": "recorded images",
}
SCALED = tuple(field.name for field in fields(Budget) if field.name in _COUNTS)
"""The fields of a budget that a factor scales."""
# Short on purpose: Python would compute Fraction("1e999999999").
_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?|[0-9]{1,6}/[0-9]{1,6}")


def parse_factors(texts: Iterable[str]) -> tuple[Fraction, ...]:
    """Read factors such as ``1/4``, ``0.25`` and ``16``; the smallest first, each once.

    Raises:
        UserError: a text is no factor, or there are too many.
    """
    found = []
    for text in texts:
        value = _value(text.removeprefix("x"))
        if value is None or not SMALLEST <= value <= LARGEST:
            raise UserError(
                f"--factors {text[:40]!r}: give numbers from 1/1000 to 1000, such as 1/4,1,4,16"
            )
        found.append(value)
    unique = tuple(sorted(set(found)))
    if len(unique) > MOST_FACTORS:
        raise UserError(f"--factors: {len(unique)} are too many, at most {MOST_FACTORS}")
    return unique


def _value(text: str) -> Fraction | None:
    """The number that a text means; None where it means none."""
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return Fraction(text)
    except ZeroDivisionError:
        return None


def scaled(budget: Budget, factor: Fraction) -> Budget:
    """The budget times a factor; every number is at least 1.

    Raises:
        UserError: a number gets larger than any run could spend.
    """
    changed: dict[str, Any] = {name: _times(getattr(budget, name), factor) for name in SCALED}
    recorded = changed["calibration_images"]
    ceiling = max(MOST_RECORDED, budget.calibration_images)
    floor = min(LEAST_RECORDED, budget.calibration_images)
    changed["calibration_images"] = min(max(recorded, floor), ceiling)
    if max(changed.values()) > MOST:
        raise UserError(f"--factors {factor}: a number of the budget would be above {MOST:,}")
    return replace(budget, **changed)


def budgets(budget: Budget, factors: Iterable[Fraction]) -> dict[Fraction, Budget]:
    """The budget of each factor.

    Raises:
        UserError: two factors come to the same budget, or a number is too large.
    """
    made: dict[Fraction, Budget] = {}
    for factor in factors:
        larger = scaled(budget, factor)
        twin = next((other for other, known in made.items() if known == larger), None)
        if twin is not None:
            raise UserError(
                f"--factors: x{twin} and x{factor} come to the same budget: leave one out"
            )
        made[factor] = larger
    return made


def run_name(name: str, factor: Fraction) -> str:
    """The results folder of one factor, such as ``mine-x0.25``."""
    return f"{name}-x{float(factor):.12g}"


def spent(budget: Budget) -> str:
    """What a budget lets a method spend, in words."""
    return ", ".join(f"{getattr(budget, name):,} {_COUNTS[name]}" for name in SCALED)


def _times(number: int, factor: Fraction) -> int:
    # Half up: Python's round would take 12.5 to 12 and 13.5 to 14.
    return max(1, int(number * factor + Fraction(1, 2))) if number else 0
