"""Mixed RTN: bits go where the network feels them; what is spent is what is observed."""

from dataclasses import replace

import pytest
import torch

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import QuantArenaError, Unsupported
from quantarena.methods.core.model.policy import BUDGET, UNIFORM
from quantarena.methods.core.model.width_budget import WidthBudget
from quantarena.methods.core.packed.pack import observe, pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.info import Effort
from quantarena.methods.mixed_rtn import MixedRoundToNearest
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.testing.conformance import check
from quantarena.methods.widths import DECLARED

SMALL = Effort(16, 0)


def variant(**options):
    """The method with some of its options set otherwise."""
    return lambda: MixedRoundToNearest(MixedRoundToNearest.Options(**options))


def budgeted(probe, bits):
    return replace(probe.context(bits, "paper", SMALL), policy=BUDGET)


class Takes(MixedRoundToNearest):
    """Gives every layer the bits that it likes, and says so."""

    def quantize(self, ctx):
        return self.rounded(ctx, dict.fromkeys(ctx.budget.layers, Bits(6, 8)))


@pytest.mark.parametrize("bits", [Bits(3, 8), Bits(4, 8)])
def test_it_wins_where_layers_differ(judged, uneven, bits):
    made, ours = judged(variant(), uneven, bits, BUDGET)
    _, equal = judged(variant(mixed=False), uneven, bits, BUDGET)
    _, rtn = judged(RoundToNearest, uneven, bits)
    assert equal == rtn, "without its idea it is round to nearest"
    assert rtn >= 3 * ours
    widths = [made.layers[f"middle.{i}"].bits.weight for i in range(6)]
    assert min(widths[1], widths[4]) > bits.weight > max(widths[0], widths[2])
    observe(made, pack(made), uneven, WidthBudget.of(BUDGET, made.graph, bits))


def test_under_uniform_it_is_round_to_nearest(transformer):
    context = transformer.context(Bits(4, 4), "paper", SMALL)
    ours, rtn = (method.run(context) for method in (MixedRoundToNearest(), RoundToNearest()))
    assert "allocation" not in ours.notes
    one, other = ours.state(), rtn.state()
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("acts", [False, True])
def test_a_mixed_network_packs_saves_and_keeps_its_budget(transformer, acts):
    bits = Bits(4, 4)
    context = budgeted(transformer, bits)
    made = variant(acts=acts, steps=(-1, 1, 2))().run(context)
    widths = {layer.bits for layer in made.layers.values()}
    assert len({b.weight for b in widths}) > 2
    assert (len({made.layers[n].bits.act for n in context.budget.layers}) > 1) == acts
    packed = pack(made)
    assert parity(made, packed, transformer.heldout).max_rel <= 1e-5
    seen = observe(made, packed, transformer.model, context.budget)
    rtn = RoundToNearest().run(transformer.context(bits, "paper", SMALL))
    plain = observe(rtn, pack(rtn), transformer.model)
    assert seen.code_bits <= plain.code_bits
    assert seen.bops <= plain.bops
    spent = context.budget.require(packed.widths(), packed.mean_widths())
    assert made.notes["allocation"]["mean_bits"] == pytest.approx(spent.mean_bits, abs=1e-4)
    other = context.restore({}, made.notes)
    other.load_state(made.state())
    with torch.no_grad():
        assert torch.equal(other.run(transformer.heldout), made.run(transformer.heldout))


def test_a_method_that_overspends_is_refused_before_it_packs(transformer):
    with pytest.raises(QuantArenaError, match="policy budget allows 4 bits a weight") as found:
        Takes().run(budgeted(transformer, Bits(4, 8)))
    assert len(found.value.message.splitlines()) == 1


def test_what_is_observed_counts_not_what_is_said(transformer):
    """Widths that are packed but not declared: the packed tensors tell."""
    context = budgeted(transformer, Bits(4, 8))
    made = Takes().quantize(context)
    assert DECLARED in made.notes
    made.freeze()
    packed = pack(made)
    assert observe(made, packed, transformer.model).code_bits > 4
    with pytest.raises(QuantArenaError, match=r"6\.0000"):
        observe(made, packed, transformer.model, context.budget)


def test_only_free_layers_have_other_widths(transformer):
    context = budgeted(transformer, Bits(4, 8))
    fixed = next(iter(context.budget.fixed))
    with pytest.raises(
        QuantArenaError, match=f"policy budget leaves no choice of width to {fixed}"
    ):
        context.wrap(widths={fixed: Bits(4, 8)})
    free = next(iter(context.budget.layers))
    with pytest.raises(QuantArenaError, match="policy uniform leaves no choice"):
        replace(context, policy=UNIFORM).wrap(widths={free: Bits(5, 8)})


def test_others_are_skipped_with_a_reason(transformer):
    with pytest.raises(Unsupported, match="rtn does not choose widths, which policy budget asks"):
        RoundToNearest().run(budgeted(transformer, Bits(4, 8)))


def test_weights_alone(transformer):
    context = budgeted(transformer, Bits(4, 16))
    made = MixedRoundToNearest().run(context)
    observe(made, pack(made), transformer.model, context.budget)


@pytest.mark.slow
def test_conformance():
    results = check("mixed_rtn", effort=Effort(samples=8, iterations=2))
    assert {(r.name, r.model): r.detail for r in results if not r.passed} == {}
    assert len([r for r in results if r.name == "budget kept"]) == 3


class Beside(MixedRoundToNearest):
    """Narrow codes, and a branch in floating point of this rank beside one layer."""

    rank, widths, where = 32, Bits(4, 8), "middle.1"

    def quantize(self, ctx):
        model = self.rounded(ctx, dict.fromkeys(ctx.budget.layers, self.widths))
        layer = model.layers[self.where]
        u, s, v = torch.linalg.svd(layer.weight.detach())
        layer.set_low_rank(v[: self.rank], u[:, : self.rank] * s[: self.rank])
        return model


def test_a_branch_in_floating_point_is_paid_for(judged, uneven):
    """One of full rank is the whole layer again: with it any width would be without loss."""
    with pytest.raises(QuantArenaError, match=r"2,048 values of branches in floating point among"):
        judged(Beside, uneven, Bits(4, 8), BUDGET)

    class Narrow(Beside):
        """Its products are 32 by 32 bits: two bits less everywhere pay for rank 1, not for 2."""

        rank, widths = 1, Bits(2, 8)

    made, _ = judged(Narrow, uneven, Bits(4, 8), BUDGET)
    packed, budget = pack(made), WidthBudget.of(BUDGET, made.graph, Bits(4, 8))
    assert packed.branches() == {"middle.1": 32 + 32}
    observe(made, packed, uneven, budget)
    spent = budget.spending(packed.widths(), branches=packed.branches())
    weights = 6 * 32 * 32
    assert spent.weight_bits == 2 * weights + 32 * 64
    macs = made.graph.layers["middle.1"].macs * 64 / (32 * 32)
    assert spent.bops == budget.spending(packed.widths()).bops + 32 * 32 * macs
    narrower = WidthBudget.of(BUDGET, made.graph, Bits(2, 8))
    with pytest.raises(QuantArenaError, match=r"64 values of branches"):  # as it was packed
        observe(made, packed, uneven, narrower)


def test_a_kept_layer_has_no_branch(judged, uneven):
    class AtTheEnd(Beside):
        """Beside the layer that makes the output."""

        where, rank = "last", 1

    with pytest.raises(QuantArenaError, match="last has a branch in floating point"):
        judged(AtTheEnd, uneven, Bits(4, 8), BUDGET)
