"""Policy ``budget``: what is counted, over which layers, and what is refused."""

import pytest

from quantarena.methods.core.bits import FP, Bits
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.model.policy import BUDGET, UNIFORM
from quantarena.methods.core.model.width_budget import WidthBudget
from quantarena.methods.core.trace.network import Graph, LayerInfo, Role

W4A8 = Bits(4, 8)
GRAPH = Graph(
    {
        info.name: info
        for info in (
            LayerInfo("in", Role.INPUT, 0, 50, 10),
            LayerInfo("small", Role.CONV, 1, 1000, 100),
            LayerInfo("large", Role.FF, 2, 400, 400),
            LayerInfo("out", Role.OUTPUT, 3, 50, 10),
        )
    },
    0,
)
UNIFORM_WIDTHS = {"in": Bits(8, 8), "small": W4A8, "large": W4A8, "out": Bits(8, 8)}


@pytest.fixture
def budget():
    return WidthBudget.of(BUDGET, GRAPH, W4A8)


def test_the_uniform_cell_is_the_bound(budget):
    assert BUDGET.assign(GRAPH, W4A8) == UNIFORM.assign(GRAPH, W4A8) == UNIFORM_WIDTHS
    assert set(budget.layers) == {"small", "large"}
    assert budget.most == budget.require(UNIFORM_WIDTHS)
    assert budget.most.mean_bits == 4
    assert budget.most.bops == 1400 * 32


def test_there_is_none_where_nothing_is_free():
    assert WidthBudget.of(UNIFORM, GRAPH, W4A8) is None
    assert WidthBudget.of(BUDGET, GRAPH, FP) is None


def test_each_bound_holds_by_itself(budget):
    # a bit more in the small layer is a fifth of a bit on the mean, and most of the operations
    wide = {**UNIFORM_WIDTHS, "small": Bits(5, 8), "large": Bits(3, 8)}
    assert budget.spending(wide).mean_bits < 4
    with pytest.raises(QuantArenaError, match="policy budget allows 4 bits a weight") as found:
        budget.require(wide)
    assert len(found.value.message.splitlines()) == 1
    heavy = {**UNIFORM_WIDTHS, "small": Bits(2, 8), "large": Bits(5, 8)}
    assert budget.spending(heavy).bops < budget.most.bops
    with pytest.raises(QuantArenaError, match=r"4\.4000 and"):
        budget.require(heavy)
    budget.require({**UNIFORM_WIDTHS, "small": Bits(5, 5), "large": Bits(3, 8)})


def test_means_of_channels_count(budget):
    with pytest.raises(QuantArenaError, match=r"4\.0200"):
        budget.require(UNIFORM_WIDTHS, {"small": 4.1})
    budget.require(UNIFORM_WIDTHS, {"small": 3.9, "large": 4.0})


def test_a_layer_in_floating_point_counts_32_bits(budget):
    with pytest.raises(QuantArenaError, match=r"9\.6"):
        budget.require({**UNIFORM_WIDTHS, "small": FP})


def test_other_layers_keep_the_policys_widths(budget):
    for bits in (Bits(6, 8), Bits(8, 6), FP):
        with pytest.raises(QuantArenaError, match=f"in is {bits}, policy budget keeps it at w8a8"):
            budget.require({**UNIFORM_WIDTHS, "in": bits})


def test_layers_that_do_not_run_neither_spend_nor_free(budget):
    rest = budget.without({"large", "in"})
    assert rest.most.weights == 100
    rest.require({"small": W4A8, "out": Bits(8, 8)})
    with pytest.raises(QuantArenaError):
        rest.require({"small": Bits(5, 8), "out": Bits(8, 8)})
