"""Whether methods can be told apart in a plot, whoever looks at it: colours as four eyes see them.

Colours of two methods that share a style (filled, hollow, with a dot) must differ by a CIEDE2000
of 15 for normal sight and for simulated protanopia, deuteranopia and tritanopia (Machado, Oliveira
and Fernandes 2009, severity 1). About 2 is the least that can be seen side by side.
"""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from quantarena.leaderboard.page import plot

color = pytest.importorskip("skimage.color", reason="scikit-image is not installed")

STYLE = Path(plot.__file__).with_name("templates").joinpath("style.css").read_text()
EYES = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
LEAST = 15.0


def themes():
    """The colours of the methods and the ground behind them, (6, 3) and (3,), light then dark."""
    light, dark = STYLE.split("@media (prefers-color-scheme: dark)")
    for text in (light, dark):
        found = {n: c for n, c in re.findall(r"--(c\d+|sheet): (#[0-9a-f]{6});", text)[:7]}
        names = [f"c{n}" for n in range(plot.COLOURS)]
        yield np.array([rgb(found[n]) for n in names]), rgb(found["sheet"])


def rgb(code):
    return np.array([int(code[at : at + 2], 16) for at in (1, 3, 5)]) / 255


def linear(colours):
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def seen(colours, eye):
    """(N, 3) CIELAB of sRGB colours as that eye sees them."""
    light = np.clip(linear(colours) @ np.array(EYES[eye]).T, 0, 1)
    shown = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return color.rgb2lab(shown[None])[0]


def test_the_simulation_is_that_of_the_paper():
    """Greys stay grey, and the red and green that a protanope mixes up come near each other."""
    grey = np.array([[0.5, 0.5, 0.5]])
    for eye in EYES:
        assert np.abs(seen(grey, eye) - seen(grey, "normal")).max() < 0.05
    pair = np.array([rgb("#d62728"), rgb("#6b6b00")])
    far, near = (color.deltaE_ciede2000(*seen(pair, eye)) for eye in ("normal", "protanopia"))
    assert near < far / 3


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_of_one_style_are_told_apart(theme, eye):
    colours, _ = list(themes())[theme]
    lab = seen(colours, eye)
    found = {(a, b): color.deltaE_ciede2000(lab[a], lab[b]) for a, b in combinations(range(6), 2)}
    assert min(found.values()) >= LEAST, min(found, key=found.get)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_stand_out_from_the_ground(theme):
    """4.5 to 1: names in plots have these colours too."""
    colours, ground = list(themes())[theme]
    shade = linear(np.vstack([colours, ground])) @ [0.2126, 0.7152, 0.0722] + 0.05
    ratio = np.maximum(shade[:-1], shade[-1]) / np.minimum(shade[:-1], shade[-1])
    assert ratio.min() >= 4.5


def test_methods_of_one_colour_have_another_style():
    looks = [plot.look(place) for place in range(plot.COLOURS * plot.STYLES)]
    assert len(set(looks)) == len(looks)
    assert plot.look(len(looks)) == looks[0]
    for number in range(plot.COLOURS):
        assert f".c{number} {{ color: var(--c{number}) }}" in STYLE
    assert ".mark:is(.s1, .s3)" in STYLE
    assert ".s3 .eye" in STYLE
