import pytest

from quantarena.bench.errors import BrokenModel, UnknownName, Unsupported, UserError, did_you_mean


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
