"""Allocation of widths: the optimum of every small case, within both bounds."""

from itertools import product

import numpy as np
import pytest

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.width_budget import WidthBudget
from quantarena.methods.core.trace.network import LayerInfo, Role
from quantarena.methods.techniques.widths.allocate import allocate

W4A8 = Bits(4, 8)


def case(seed, layers, widths):
    """A budget over layers of random sizes, and losses that mostly fall with bits."""
    draw = np.random.default_rng(seed)
    infos = {
        f"l{i}": LayerInfo(f"l{i}", Role.CONV, i, int(w * m), int(w))
        for i, (w, m) in enumerate(
            zip(draw.integers(10, 2000, layers), draw.integers(1, 300, layers), strict=True)
        )
    }
    losses = {
        name: {
            bits: float(scale * 4.0**-bits.weight * 2.0**-bits.act * draw.uniform(0.5, 2))
            for bits in widths
        }
        for name, scale in zip(infos, 10.0 ** draw.uniform(-4, 2, layers), strict=True)
    }
    return WidthBudget(W4A8, infos, {}), losses


def best(budget, losses):
    """The smallest loss of all assignments within the budget."""
    found = np.inf
    for choice in product(*(row for row in losses.values())):
        widths = dict(zip(losses, choice, strict=True))
        if budget.spending(widths).within(budget.most):
            found = min(found, sum(losses[name][bits] for name, bits in widths.items()))
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("layers", "widths"),
    [
        (7, [Bits(w, 8) for w in (2, 3, 4, 5, 6)]),
        (5, [Bits(w, a) for w in (3, 4, 6) for a in (6, 8)]),
    ],
)
def test_it_is_the_best_of_all(seed, layers, widths):
    budget, losses = case(seed, layers, widths)
    found = allocate(losses, budget)
    assert found.spent.within(budget.most)
    assert found.spent == budget.spending(found.widths)
    assert found.loss <= best(budget, losses) * 1.001
    assert found.equal is not None
    assert found.loss <= found.equal


def test_both_bounds_bind():
    """One layer holds the weights, the other the operations: each is kept from taking bits."""
    infos = {
        "heavy": LayerInfo("heavy", Role.FF, 0, 10, 1000),
        "busy": LayerInfo("busy", Role.CONV, 1, 1000, 10),
    }
    budget = WidthBudget(W4A8, infos, {})
    for wants in infos:
        losses = {
            name: {Bits(w, 8): (100 if name == wants else 1) / w for w in (2, 3, 4, 5, 6)}
            for name in infos
        }
        assert allocate(losses, budget).widths == dict.fromkeys(infos, W4A8)


def test_the_requested_width_alone_is_within_the_budget():
    budget, losses = case(0, 5, [W4A8])
    assert set(allocate(losses, budget).widths.values()) == {W4A8}


def test_layers_without_losses_are_left_alone():
    budget, losses = case(1, 6, [Bits(w, 8) for w in (2, 4, 8)])
    some = {name: losses[name] for name in list(losses)[:4]}
    found = allocate(some, budget)
    assert found.widths.keys() == some.keys()
    assert found.most == budget.only(some).most
    assert allocate({}, budget).widths == {}


def test_what_cannot_be_done_is_said():
    budget, losses = case(0, 3, [Bits(5, 8), Bits(6, 8)])
    with pytest.raises(Unsupported, match="no choice of widths from w5a8 up is within the budget"):
        allocate(losses, budget)
    for loss in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="l1: losses have to be finite"):
            allocate({"l0": {W4A8: 1.0}, "l1": {W4A8: loss}}, budget)


def test_the_note_is_plain_data():
    budget, losses = case(3, 6, [Bits(w, 8) for w in (2, 3, 4, 5)])
    note = allocate(losses, budget).note()
    assert sum(note["layers"].values()) == 6
    assert note["mean_bits"] <= 4
    assert note["bops_share"] <= 1
    assert note["loss_to_equal"] <= 1
