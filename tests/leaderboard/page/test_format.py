import pytest

from quantarena.bench.schema import Measurement
from quantarena.leaderboard.page import format as formats


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.005432, 0.0046, 0.0062, "0.0054"),
        (37.456, 36.8, 38.2, "37.5"),
        (0.99554, 0.9950, 0.9962, "0.9955"),
        (1.4, 1.25, 1.55, "1.40"),
        (123.4, 100.0, 150.0, "123"),
        (-0.0021, -0.003, -0.001, "−0.0021"),
        (0.012345, None, None, "0.0123"),
        (0.0, None, None, "0"),
        (None, None, None, "–"),
        (float("nan"), None, None, "–"),
        (float("inf"), None, None, "∞"),
    ],
)
def test_digits_follow_the_interval(value, low, high, text):
    assert formats.number(value, low, high) == text


def test_ends_match_their_value():
    figure = Measurement("psnr", 37.456, 36.81, 38.24)
    assert (formats.figure(figure), formats.ends(figure)) == ("37.5", "36.8–38.2")
    assert formats.ends(Measurement("psnr", 3.0)) == formats.ends(None) == ""
    assert formats.figure(None) == "–"


def test_units():
    assert formats.percent(0.9996).startswith("99.9")
    assert formats.percent(1.0).startswith("100")
    assert formats.percent(0.031).startswith("3.1")
    assert formats.percent(None) == "–"
    assert formats.size(26_800_000).startswith("26.8")
    assert formats.size(0) == "–"
    assert formats.seconds(3725) == "1:02:05"
    assert formats.times(1.519) == "1.52"
    assert [formats.signed(x, x - 0.01, x + 0.01) for x in (0.05, -0.05, 0.0)] == [
        "+0.050",
        "−0.050",
        "0.000",
    ]
    assert formats.signed(None) == "–"
    assert formats.signed_percent(-0.254).startswith("−25")
    assert formats.unit("x1e-3") == "×10⁻³"
    assert [formats.unit(text) for text in ("dB", "", "x")] == ["dB", "", "x"]


def test_facts_are_flat_short_and_complete():
    pairs = dict(
        formats.facts({"a_b": 1, "none": None, "d": {"x": 1}, "l": [1, 2], "t": "y" * 900})
    )
    assert pairs["a b"] == "1"
    assert pairs["d"] == "x: 1"
    assert pairs["l"] == "1, 2"
    assert len(pairs["t"]) == 401
    assert "none" not in pairs


def test_breakable_escapes_first():
    assert str(formats.breakable("<b>_x")) == "&lt;b&gt;_<wbr>x"
