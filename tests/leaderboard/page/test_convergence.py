from xml.etree import ElementTree

import pytest

from quantarena.leaderboard.page.convergence import convergence_svg
from quantarena.leaderboard.ranking.simulation.runs import Setup
from quantarena.leaderboard.ranking.simulation.study import study
from quantarena.leaderboard.ranking.simulation.voters import Regime

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def outcomes():
    regime = Regime(0.3)
    return [
        study("ksort", Setup(8, 4, 40, regime, looks=0), range(2)),
        study("elo", Setup(8, 2, 40, regime, looks=0), range(2)),
    ]


def points(line):
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


def test_votes_and_views_are_drawn(outcomes):
    root = ElementTree.fromstring(convergence_svg(outcomes, "eight & more <models>"))
    lines = [points(line) for line in root.iter(f"{SVG}polyline")]
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert len(lines) == 4
    assert all(len(line) == 40 for line in lines)
    assert {"votes, log scale", "image views, log scale", "eight & more <models>"} <= set(texts)
    assert "elo, K = 2, matches: random" in texts
    _, _, width, height = map(float, root.get("viewBox").split())
    assert all(0 <= x <= width and 0 <= y <= height for line in lines for x, y in line)


def test_an_engine_with_smaller_votes_lies_left_in_views(outcomes):
    root = ElementTree.fromstring(convergence_svg(outcomes, "t"))
    votes_k4, votes_k2, views_k4, views_k2 = (points(p)[-1][0] for p in root.iter(f"{SVG}polyline"))
    assert votes_k4 == votes_k2
    assert views_k2 < views_k4


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no run"):
        convergence_svg([], "t")
