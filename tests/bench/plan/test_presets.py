from dataclasses import fields, replace
from typing import get_type_hints

import pytest

from quantarena.bench.cli.options import RequestOptions
from quantarena.bench.errors import UserError
from quantarena.bench.plan.presets import (
    LIMITS,
    PRESETS,
    Choice,
    choose,
    command,
    flag,
    preset,
)


def test_the_presets_by_size():
    counts = {name: len(p.grid.cells()) for name, p in PRESETS.items()}
    assert list(counts) == ["smoke", "quick", "full", "paper"]
    assert counts["smoke"] < counts["quick"] < counts["full"]
    images = [p.grid.budget.images for p in PRESETS.values()]
    assert images == sorted(images)


def test_every_preset_carries_its_name_and_its_reference_row():
    for name, found in PRESETS.items():
        assert found.grid.name == name
        assert found.grid.cells()[0].method == "fp"
        assert all(cell.widths for cell in found.grid.cells())


def test_long_presets_warn():
    assert "hours" in PRESETS["full"].warning
    assert "days" in PRESETS["paper"].warning
    assert not PRESETS["quick"].warning


def test_an_unknown_preset():
    with pytest.raises(UserError, match="unknown preset 'fulll': did you mean full"):
        preset("fulll")


def test_full_precision_always_comes_along():
    choice = Choice(workloads=("emoji-dit",), methods=("rtn",), bits=("W4A8",))
    grid = choose(PRESETS["quick"].grid, choice)
    assert [(c.method, c.bits) for c in grid.cells()] == [("fp", "fp"), ("rtn", "w4a8")]


def test_cells_of_a_choice_are_the_presets_own():
    chosen = choose(PRESETS["quick"].grid, Choice(methods=("rtn", "rtn"), bits=("w4a8",)))
    assert set(chosen.cells()) <= set(PRESETS["quick"].grid.cells())
    assert chosen.name == "quick"


def test_another_budget_is_another_name():
    grid = PRESETS["quick"].grid
    one, other = choose(grid, Choice(images=48)), choose(grid, Choice(images=32))
    assert one.name.startswith("quick-")
    assert one.name != other.name
    assert choose(grid, Choice(images=48)).name == one.name
    assert choose(grid, Choice(images=grid.budget.images)).name == "quick"
    assert choose(grid, Choice(images=48, name="mine")).name == "mine"


@pytest.mark.parametrize("name", ["", " x", "a/b", "..", ".cache", "a\\b"])
def test_names_that_would_leave_the_results_folder(name):
    if name:
        with pytest.raises(UserError, match="it names one folder"):
            choose(PRESETS["quick"].grid, Choice(name=name))


def test_the_command_that_asks_for_the_same_cells():
    assert command("smoke", Choice()) == "./run_all.sh smoke"
    given = Choice(methods=("rtn",), bits=("w4a8",), images=9)
    line = command("quick", given, ("/a b/mine.py",))
    assert line == (
        "quantarena run quick --method rtn --bits w4a8 --plugin '/a b/mine.py' --images 9"
    )


def test_variants_and_policies_are_chosen_and_full_precision_has_one_row():
    choice = Choice(
        methods=("rtn",),
        bits=("w4a8",),
        variants=("paper", "release"),
        policies=("uniform", "published"),
    )
    cells = choose(PRESETS["smoke"].grid, choice).cells()
    assert len([c for c in cells if c.method == "fp"]) == 1
    found = {(c.variant, c.policy) for c in cells if c.method == "rtn"}
    assert found == {(v, p) for v in choice.variants for p in choice.policies}
    assert "--variant release" in command("smoke", choice)
    with pytest.raises(UserError, match=r"unknown policy 'publishd'.*published"):
        choose(PRESETS["smoke"].grid, Choice(policies=("publishd",)))


def test_policy_names_are_those_of_the_core():
    from quantarena.bench.spec import POLICY_NAMES
    from quantarena.methods.core.model.policy import POLICIES, PUBLISHED

    assert set(POLICY_NAMES) == {*POLICIES, PUBLISHED}


def test_methods_with_widths_of_their_own():
    grid = replace(PRESETS["smoke"].grid, also=(("rtn", "w4a16"), ("scales", "w4a16")))

    def made(**choice):
        chosen = choose(grid, Choice(**choice)).cells()
        return {(c.method, c.bits) for c in chosen if c.method != "fp"}

    assert (
        made()
        == made(seeds=(0,))
        == {
            ("rtn", "w4a8"),
            ("rtn", "w4a4"),
            ("q_diffusion", "w4a8"),
            ("q_diffusion", "w4a4"),
            ("rtn", "w4a16"),
            ("scales", "w4a16"),
        }
    )
    assert made(methods=("scales",)) == {("scales", "w4a16")}
    assert made(methods=("q_diffusion",)) == {("q_diffusion", "w4a8"), ("q_diffusion", "w4a4")}
    assert made(methods=("scales",), bits=("w8a16",)) == {("scales", "w8a16")}
    assert made(bits=("w4a8",)) == {("rtn", "w4a8"), ("q_diffusion", "w4a8")}
    assert {("scales", "w4a16"), ("q_diffusion", "w4a16")} <= made(bits=("W4A16",))


def test_every_limit_of_the_budget_is_an_option_and_stands_in_the_command():
    given = Choice(
        images=8,
        batch=4,
        steps=5,
        calibration_images=6,
        calibration_samples=7,
        range_samples=9,
        iterations=3,
    )
    assert all(getattr(given, name) is not None for name in LIMITS)
    budget = choose(PRESETS["quick"].grid, given).budget
    assert [getattr(budget, name) for name in LIMITS] == [getattr(given, name) for name in LIMITS]
    line = command("quick", given)
    options = {name for field in fields(RequestOptions) for name in _flags(field)}
    for name in LIMITS:
        assert flag(name) in options
        assert f" {flag(name)} {getattr(given, name)}" in line
    with pytest.raises(UserError, match="--samples 0: it must be at least 1"):
        choose(PRESETS["quick"].grid, Choice(calibration_samples=0))


def _flags(field):
    hint = get_type_hints(RequestOptions, include_extras=True)[field.name]
    said = getattr(hint, "__metadata__", ())
    return [word for each in said for word in (each.default, *(each.param_decls or ()))]
