"""Options as text: typed, bounded, described, and every mistake in one line."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pytest

from quantarena.methods.builtin import builtins
from quantarena.methods.core.errors import UserError
from quantarena.methods.dgq import Dgq
from quantarena.methods.options import (
    AtLeast,
    MethodOptions,
    Within,
    check_declaration,
    describe,
    pairs_of,
    parse,
)
from quantarena.methods.registry import entry


@dataclass(frozen=True)
class Every(MethodOptions):
    """One option of each kind.

    Attributes:
        groups: number of groups,
            at least one.
        share: a share.
        mixed: mix.
        search: which search.
        radius: a radius.
        sizes: several sizes.
    """

    groups: Annotated[int, AtLeast(1)] = 8
    share: Annotated[float, Within(0, 1)] = 0.5
    mixed: bool = True
    search: Literal["mse", "minmax"] = "mse"
    radius: Annotated[float | None, AtLeast(0)] = None
    sizes: tuple[int, ...] = (1, 2)
    label: str = "a"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("groups", "4", 4),
        ("share", "1", 1.0),
        ("mixed", "False", False),
        ("search", "minmax", "minmax"),
        ("radius", "0.7", 0.7),
        ("sizes", "3,4,5", (3, 4, 5)),
        ("label", "a=b", "a=b"),
    ],
)
def test_text_becomes_a_value_and_text_again(name, text, value):
    options = parse("every", Every, [(name, text)])
    assert options == replace(Every(), **{name: value})
    assert type(getattr(options, name)) is type(value)
    assert parse("every", Every, pairs_of(options)) == options


def test_only_what_differs_from_the_default_is_kept_in_one_order():
    options = parse("every", Every, [("share", "0.25"), ("groups", "4"), ("mixed", "true")])
    assert pairs_of(options) == (("groups", "4"), ("share", "0.25"))
    same = parse("every", Every, [("groups", "08"), ("share", "0.50"), ("radius", "none")])
    assert pairs_of(same) == ()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("groups", "0", "--option every.groups=0: it must be a whole number, at least 1"),
        ("groups", "4.5", "it must be a whole number, at least 1"),
        ("groups", "true", "it must be a whole number, at least 1"),
        ("share", "1.5", "it must be a number, at least 0 and at most 1"),
        ("share", "nan", "it must be a number"),
        ("share", "none", "it must be a number"),
        ("mixed", "2", "it must be true or false"),
        ("search", "max", "it must be mse or minmax"),
        ("radius", "-1", "it must be a number or none, at least 0"),
        ("sizes", "1,x", "it must be a whole number, several by comma"),
        ("group", "4", r"no option 'group': did you mean groups\?"),
    ],
)
def test_a_mistake_is_one_line(name, text, message):
    with pytest.raises(UserError, match=message) as caught:
        parse("every", Every, [(name, text)])
    assert "\n" not in str(caught.value)


def test_an_option_given_twice_is_refused():
    with pytest.raises(UserError, match=r"every\.groups is given twice"):
        parse("every", Every, [("groups", "4"), ("groups", "8")])


def test_a_method_without_options_says_so():
    with pytest.raises(UserError, match="fp has no options"):
        entry("fp").method.configured([("groups", "4")])


@pytest.mark.parametrize("wrong", [{"groups": 0}, {"share": "half"}, {"sizes": (1.5,)}])
def test_values_from_python_are_checked_too(wrong):
    with pytest.raises(UserError, match=f"option {next(iter(wrong))}="):
        Every(**wrong)


def test_descriptions_come_from_the_docstring():
    found = {option.name: option for option in describe(Every)}
    assert found["groups"].description == "number of groups, at least one."
    assert (found["mixed"].values, found["mixed"].default) == ("true or false", "true")
    assert found["radius"].default == "none"


def test_switches_name_options_and_values_that_they_may_have():
    check_declaration("every", Every, {"groups": 1, "mixed": False})
    with pytest.raises(UserError, match="names 'group', which is no option"):
        check_declaration("every", Every, {"group": 1})
    with pytest.raises(UserError, match="option groups=0"):
        check_declaration("every", Every, {"groups": 0})


def test_options_that_cannot_be_read_are_refused_at_once():
    @dataclass(frozen=True)
    class Needs(MethodOptions):
        groups: int

    @dataclass(frozen=True)
    class Nested(MethodOptions):
        table: dict[str, int] | None = None

    for kind in (Needs, Nested):
        with pytest.raises(UserError, match=r"mine\.Options: every field needs a plain default"):
            check_declaration("mine", kind, {})


@pytest.mark.parametrize("name", builtins())
def test_every_option_of_a_built_in_is_described_and_can_be_written_down(name):
    kind = entry(name).method.Options
    options = describe(kind)
    assert all(option.description for option in options)
    assert parse(name, kind, [(option.name, option.default) for option in options]) == kind()


def test_a_methods_options_reach_it():
    assert Dgq().options.groups == 8
    assert Dgq.configured([("groups", "4")]).options == Dgq.Options(groups=4)
