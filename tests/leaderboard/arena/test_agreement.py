import itertools
import random

import pytest

from quantarena.leaderboard.arena.agreement import ordinal_alpha
from quantarena.leaderboard.arena.quality import quality

N = None
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]
"""Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), example C."""


def units(table):
    return [[v for v in column if v is not None] for column in zip(*table, strict=True)]


def test_the_published_example():
    assert ordinal_alpha(units(OBSERVERS)) == pytest.approx(0.815, abs=5e-4)


def test_the_scale_is_ordered_and_nothing_else_matters():
    stretched = [[None if v is None else v**3 for v in row] for row in OBSERVERS]
    assert ordinal_alpha(units(stretched)) == pytest.approx(ordinal_alpha(units(OBSERVERS)))
    assert ordinal_alpha([[1, 2], [2, 3], [3, 1]]) < ordinal_alpha([[1, 2], [2, 3], [3, 3]])


def test_full_agreement_chance_and_nothing():
    assert ordinal_alpha([[1, 1], [2, 2, 2], [3, 3]]) == pytest.approx(1.0)
    rng = random.Random(0)
    assert abs(ordinal_alpha([[rng.randint(-1, 1) for _ in range(3)] for _ in range(2000)])) < 0.04
    assert ordinal_alpha([]) is None
    assert ordinal_alpha([[1], [2]]) is None
    assert ordinal_alpha([[1, 1], [1, 1]]) is None


def test_judges_are_compared_on_the_pairs_that_both_put_in_order(make_event):
    names = [f"m{n}@w4a4" for n in range(3)]

    def votes(judge, orders, **changes):
        return [
            make_event([[n] for n in order], names=names, judge=judge * 16, image=at, **changes)
            for at, order in enumerate(orders)
        ]

    orders = list(itertools.permutations(range(3)))
    turned = [order[::-1] for order in orders]
    events = votes("a", orders) + votes("b", orders)
    found = {one.judge[0]: one for one in quality(events)}
    assert found["a"].alpha == found["b"].alpha == pytest.approx(1.0)
    assert found["a"].alpha_pairs == 3 * len(orders)
    events += votes("c", turned)
    found = {one.judge[0]: one for one in quality(events)}
    assert found["c"].alpha < 0.1
    picks = [
        make_event([[0], [1, 2]], names=names, judge="d" * 16, image=n, mode="best")
        for n in range(3)
    ]
    alone = {one.judge[0]: one for one in quality(events + picks)}["d"]
    assert (alone.alpha, alone.alpha_pairs) == (None, 0), "the best alone leaves others unordered"
