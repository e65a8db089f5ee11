import pytest

from quantarena.methods.core.bits import FP, Bits, parse_bits
from quantarena.methods.core.errors import QuantArenaError, UnknownName, did_you_mean
from quantarena.methods.core.model.policy import UNIFORM, Policy, policy
from quantarena.methods.core.trace.network import Role


@pytest.mark.parametrize("text", ["w4a8", " W4A8 ", "w4A8"])
def test_bits_read(text):
    assert parse_bits(text) == Bits(4, 8)
    assert str(parse_bits(text)) == "w4a8"


@pytest.mark.parametrize("text", ["fp", "FP32", "w16a16"])
def test_full_precision_reads(text):
    assert parse_bits(text) == FP
    assert str(FP) == "fp"


@pytest.mark.parametrize("text", ["w0a8", "w4a99", "w9a8", "4/8", "", "w4", "w4a8x", "w-4a8"])
def test_impossible_bits_are_one_line(text):
    with pytest.raises(ValueError, match="bits") as caught:
        parse_bits(text)
    assert "\n" not in str(caught.value)


def test_near_names_come_first():
    assert did_you_mean("q-difusion", ["rtn", "q_diffusion"]).startswith("did you mean q_diffusion")
    assert did_you_mean("zzz", []) == "none are known"


def test_error_messages_are_one_line():
    assert QuantArenaError("a\n  b").message == "a b"


def test_unknown_policy_suggests():
    with pytest.raises(UnknownName, match="did you mean uniform"):
        policy("unifrom")
    assert policy("uniform") is UNIFORM


def test_uniform_policy_protects_three_roles(pixel):
    assigned = UNIFORM.assign(pixel.graph, Bits(4, 4))
    raised = {pixel.graph.layers[name].role for name, bits in assigned.items() if bits.weight > 4}
    assert raised == {Role.INPUT, Role.OUTPUT, Role.TIME_EMBED}
    assert {str(b) for b in assigned.values()} == {"w4a4", "w8a8"}
    assert set(assigned) == set(pixel.graph.layers)


def test_floors_never_lower(pixel):
    floor = Policy("low", {Role.CONV: Bits(2, 8)})
    assigned = floor.assign(pixel.graph, Bits(4, 4))
    found = {b for n, b in assigned.items() if pixel.graph.layers[n].role is Role.CONV}
    assert found == {Bits(4, 8)}


def test_full_precision_request_overrides_floors(pixel):
    assert set(UNIFORM.assign(pixel.graph, FP).values()) == {FP}
