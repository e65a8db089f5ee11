import pytest

from quantarena.bench.errors import (
    BrokenModel,
    UnknownName,
    Unsupported,
    UserError,
    did_you_mean,
    first_line,
    one_line,
)


def test_messages_are_one_line():
    assert str(UserError("cannot\n   read\tit")) == "cannot read it"


def test_what_is_a_users_mistake():
    assert issubclass(UnknownName, UserError)
    assert issubclass(BrokenModel, UserError)
    assert not issubclass(Unsupported, UserError)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("rtm", "did you mean rtn?"),
        ("Q-Diffusion", "did you mean q_diffusion?"),
        ("qdiffusion", "did you mean q_diffusion?"),
        ("zzz", "known: fp, q_diffusion, rtn"),
    ],
)
def test_near_names(name, near):
    assert did_you_mean(name, ["rtn", "fp", "q_diffusion"]).startswith(near)


def test_no_names_at_all():
    assert did_you_mean("x", []) == "none are known"


def test_an_unexpected_error_in_one_line():
    with pytest.raises(ValueError, match="first") as caught:
        raise ValueError("first\nsecond")
    assert one_line(caught.value).startswith("ValueError: first second (test_errors.py:")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n one"), "one"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_the_first_line_of_a_message(error, line):
    assert first_line(error) == line
